#include "clt/data/dataset.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/io/json.hpp"
#include "data/manifest.hpp"
#include "data/storage.hpp"

namespace clt {
namespace {

using nlohmann::json;

std::optional<Index> whole_number(std::string_view text) {
    Index value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
    return value;
}

/// Numbers written as strings count too: the reference's readers take them.
Index required_count(const JsonObject& metadata, const char* key) {
    if (metadata.has(key) && metadata.json()[key].is_string())
        if (const auto value = whole_number(metadata.text(key))) return *value;
    return metadata.integer(key, 0);
}

const char* describe(H5Type type) {
    switch (type) {
        case H5Type::float32:
            return "float32";
        case H5Type::float16:
            return "float16";
        case H5Type::uint16:
            return "uint16 (bfloat16 bits)";
        default:
            return "another type";
    }
}

/// Ids of the groups layer_<id>, ascending: HDF5 lists layer_10 before layer_2.
std::vector<Index> layer_ids_of(const H5File& file) {
    std::vector<Index> ids;
    for (const std::string& name : file.children())
        if (name.starts_with(layer_group_prefix))
            if (const auto id =
                    whole_number(std::string_view(name).substr(layer_group_prefix.size())))
                ids.push_back(*id);
    std::sort(ids.begin(), ids.end());
    return ids;
}

void check_layers(const std::vector<Index>& ids, Index layers, const std::string& path) {
    if (static_cast<Index>(ids.size()) != layers)
        user_error("{}: holds {} layer_<id> groups, metadata.json says num_layers = {}", path,
                   ids.size(), layers);
}

/// Empty when a layer is missing: whoever needs statistics then says so.
std::vector<LayerStats> parse_stats(const std::string& text, const std::vector<Index>& layer_ids,
                                    Index d_model, const std::string& path) {
    const JsonObject all = JsonObject::parse(text, path);
    std::vector<LayerStats> stats;
    for (const Index id : layer_ids) {
        const std::string key = std::to_string(id);
        if (!all.has(key)) return {};
        const JsonObject layer = all.object(key);
        LayerStats both;
        for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
            const JsonObject section = layer.object(
                dataset_parts[part], fmt::format("layer {} {} ", id, dataset_parts[part]));
            ColumnStats& columns = part == 0 ? both.inputs : both.targets;
            columns.mean = section.floats("mean", d_model, "d_model");
            columns.std = section.floats("std", d_model, "d_model");
        }
        stats.push_back(std::move(both));
    }
    return stats;
}

struct SmallFiles {
    std::string metadata;
    std::string index;
    std::string stats;  // empty: no such file
};

SmallFiles read_small_files(const std::string& path) {
    if (!is_folder(path)) user_error("{}: no such folder, expected an activation data set", path);
    for (const char* name : {"metadata.json", "index.bin"})
        if (!path_exists(path + "/" + name))
            user_error(
                "{}: not an activation data set: {} is missing (was its generation finished?)",
                path, name);
    SmallFiles files;
    files.metadata = read_file(path + "/metadata.json", json_file_bytes);
    files.index = read_file(path + "/index.bin");
    if (path_exists(path + "/norm_stats.json"))
        files.stats = read_file(path + "/norm_stats.json", json_file_bytes);
    return files;
}

std::string chunk_path(const std::string& folder, Index id, const std::string& suffix) {
    return fmt::format("{}/chunk_{}{}", folder, id, suffix);
}

std::string chunk_suffix(const std::string& folder, Index id) {
    for (const char* suffix : {".h5", ".hdf5"})
        if (path_exists(chunk_path(folder, id, suffix))) return suffix;
    user_error("{}: missing, but index.bin lists it", chunk_path(folder, id, ".hdf5"));
}

bool any_sign_bit(const std::vector<std::byte>& words) {
    std::uint16_t any = 0;
    for (std::size_t at = 0; at + 1 < words.size(); at += 2) {
        std::uint16_t word = 0;
        std::memcpy(&word, words.data() + at, sizeof word);
        any = static_cast<std::uint16_t>(any | word);
    }
    return (any & 0x8000U) != 0;
}

}  // namespace

ActivationDataset::ActivationDataset(const std::string& path, const Communicator& communicator)
    : path_(path) {
    SmallFiles files;
    communicator.together([&] {
        if (communicator.rank() == 0) files = read_small_files(path_);
    });
    metadata_ = communicator.broadcast(files.metadata);
    files.index = communicator.broadcast(files.index);
    files.stats = communicator.broadcast(files.stats);

    // The same bytes on every rank: what is wrong here throws on every rank.
    const std::string metadata_path = path_ + "/metadata.json";
    const JsonObject metadata = JsonObject::parse(metadata_, metadata_path);
    layers_ = required_count(metadata, "num_layers");
    d_model_ = required_count(metadata, "d_model");
    tokens_ = required_count(metadata, "total_tokens");
    if (layers_ == 0 || d_model_ == 0)
        user_error("{}: num_layers = {}, d_model = {}, expected positive numbers", metadata_path,
                   layers_, d_model_);
    std::optional<DType> dtype;
    if (metadata.has("dtype")) {
        dtype = dtype_from_name(metadata.text("dtype"));
        if (!dtype) metadata.refuse("dtype", "\"float32\", \"float16\" or \"bfloat16\"");
    }
    const auto entries = parse_manifest(files.index, tokens_, path_ + "/index.bin");

    // Rank 0 looks at the folder; the others get what it found.
    json found;
    communicator.together([&] {
        if (communicator.rank() != 0) return;
        found["suffixes"] = json::array();
        for (const ManifestEntry& entry : entries)
            found["suffixes"].push_back(chunk_suffix(path_, entry.chunk));
        found["layer_ids"] = json::array();
        found["storage"] = static_cast<int>(H5Type::float32);
        if (entries.empty()) return;
        const H5File first = H5File::open(
            chunk_path(path_, entries[0].chunk, found["suffixes"][0].get<std::string>()));
        const std::vector<Index> ids = layer_ids_of(first);
        check_layers(ids, layers_, first.path());
        found["layer_ids"] = ids;
        found["storage"] = static_cast<int>(first.dataset(layer_dataset_name(ids[0], 0)).type());
    });
    found = json::parse(communicator.broadcast(found.dump()));
    layer_ids_ = found["layer_ids"].get<std::vector<Index>>();
    if (!dtype) {  // older metadata: the file itself tells
        const auto storage = static_cast<H5Type>(found["storage"].get<int>());
        dtype = storage == H5Type::uint16    ? DType::bfloat16
                : storage == H5Type::float16 ? DType::float16
                                             : DType::float32;
    }
    dtype_ = *dtype;
    for (std::size_t i = 0; i < entries.size(); ++i)
        chunks_.push_back(
            {entries[i].chunk, entries[i].rows,
             chunk_path(path_, entries[i].chunk, found["suffixes"][i].get<std::string>())});
    if (!files.stats.empty())
        stats_ = parse_stats(files.stats, layer_ids_, d_model_, path_ + "/norm_stats.json");
}

std::string ActivationDataset::fingerprint() const {
    std::string text = metadata_;
    for (const ChunkInfo& chunk : chunks_) text += fmt::format(" {}:{}", chunk.id, chunk.rows);
    return fingerprint_of(text);
}

void ActivationDataset::read(std::size_t chunk, Shard range, std::vector<std::byte>& out,
                             const Communicator& communicator) const {
    const ChunkInfo& info = chunks_.at(chunk);
    CLT_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= info.rows);
    const auto row_bytes = static_cast<std::size_t>(d_model_ * size_of(dtype_));
    const auto rows = static_cast<std::size_t>(range.size());
    const std::size_t stride = static_cast<std::size_t>(2 * layers_) * row_bytes;
    out.resize(rows * stride);
    std::exception_ptr failure;
    try {
        const H5File file = H5File::open(info.path, &communicator);
        const std::vector<Index> ids = layer_ids_of(file);
        check_layers(ids, layers_, info.path);
        std::vector<std::byte> columns(rows * row_bytes);
        std::byte* to = out.data();
        for (const Index id : ids)
            for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
                const std::string name = layer_dataset_name(id, part);
                const H5Dataset dataset = file.dataset(name);
                if (dataset.rows() != info.rows)
                    user_error("{}: {} has {} rows, index.bin says {}", info.path, name,
                               dataset.rows(), info.rows);
                if (dataset.cols() != d_model_)
                    user_error("{}: {} has width {}, metadata.json says d_model = {}", info.path,
                               name, dataset.cols(), d_model_);
                if (dataset.type() != storage_of(dtype_))
                    user_error("{}: {} is stored as {}, metadata.json says dtype = {}", info.path,
                               name, describe(dataset.type()), name_of(dtype_));
                dataset.read(range, columns.data());
                for (std::size_t row = 0; row < rows; ++row)
                    std::memcpy(to + row * stride, columns.data() + row * row_bytes, row_bytes);
                to += row_bytes;
            }
    } catch (...) {
        failure = std::current_exception();
    }
    communicator.throw_together(failure);
    if (dtype_ == DType::bfloat16 && !sign_seen_)
        warn_when_clipped(info, any_sign_bit(out), range.size(), communicator);
}

void ActivationDataset::warn_when_clipped(const ChunkInfo& chunk, bool sign_here, Index rows_here,
                                          const Communicator& communicator) const {
    sign_seen_ = !communicator.agree(!sign_here);
    // Of honest activations about half are negative, so a few rows decide; a sliver might not.
    constexpr Index enough_rows = 64;
    const Index rows = communicator.all_reduce_sum(rows_here);
    if (sign_seen_ || rows < std::min(enough_rows, chunk.rows)) return;
    sign_seen_ = true;  // once is enough
    if (communicator.rank() == 0)
        log_warning(
            "{}: no bfloat16 value is negative; the Python generator writes negative values as 0 "
            "(generate the data set anew, or as float32)",
            chunk.path);
}

}  // namespace clt
