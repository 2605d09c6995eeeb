#include "clt/data/dataset.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/data/chunk_file.hpp"
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
            for (const float deviation : columns.std)
                if (deviation < 0)
                    section.refuse("std", fmt::format("numbers of 0 or more, not {}", deviation));
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

/// Our writer's metadata.json knows the two files beside it. A missing norm_stats.json is for
/// whoever needs it to tell.
void check_small_checksums(const JsonObject& metadata, const SmallFiles& files,
                           const std::string& path) {
    if (!metadata.has("checksums")) return;
    const JsonObject checksums = metadata.object("checksums");
    for (const auto& [name, bytes] :
         {std::pair{"index.bin", &files.index}, std::pair{"norm_stats.json", &files.stats}})
        if (!bytes->empty() && checksums.text(name) != file_checksum(*bytes))
            user_error(
                "{}/{}: does not match its checksum in metadata.json: it was damaged or changed; "
                "copy it again, or delete \"checksums\" there if the change was meant",
                path, name);
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

/// The rows that all ranks read together when they follow each other without gap or overlap, else
/// none.
Shard union_of(const std::vector<Shard>& ranges) {
    Shard all;
    for (const Shard range : ranges) {
        if (range.size() == 0) continue;
        if (all.size() > 0 && range.begin != all.end) return {};
        all = all.size() > 0 ? Shard{all.begin, range.end} : range;
    }
    return all;
}

/// Adds the checksum of rows [range) of an array, shared out over the ranks. Collective.
std::uint64_t checksum_of_range(const H5Dataset& array, Shard range, Index row_bytes,
                                const Communicator& communicator) {
    constexpr Index staging_bytes = Index{16} << 20;  // of a rank
    const Index piece = std::max<Index>(1, staging_bytes / row_bytes) * communicator.size();
    std::vector<std::byte> rows;
    std::uint64_t sum = 0;
    for (Index at = range.begin; at < range.end; at += piece) {
        const Shard part =
            shard_of(std::min(piece, range.end - at), communicator.rank(), communicator.size());
        rows.resize(static_cast<std::size_t>(part.size() * row_bytes));
        array.read({at + part.begin, at + part.end}, rows.data());
        sum += checksum_of_rows(rows, at + part.begin, row_bytes);
    }
    return sum;
}

/// Texts of all ranks in rank order, on every rank. Collective.
void gather(std::vector<std::string>& texts, const Communicator& communicator) {
    json all = json::array();
    for (int rank = 0; rank < communicator.size(); ++rank)
        for (json& text : json::parse(communicator.broadcast(json(texts).dump(), rank)))
            all.push_back(std::move(text));
    texts = all.get<std::vector<std::string>>();
}

}  // namespace

ActivationDataset::ActivationDataset(const std::string& path, const Communicator& communicator,
                                     const DatasetOptions& options)
    : path_(path), verify_(options.verify) {
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
    const Index layers = required_count(metadata, "num_layers");
    layout_.d_model = required_count(metadata, "d_model");
    tokens_ = required_count(metadata, "total_tokens");
    if (layers == 0 || layout_.d_model == 0)
        user_error("{}: num_layers = {}, d_model = {}, expected positive numbers", metadata_path,
                   layers, layout_.d_model);
    std::optional<DType> dtype;
    if (metadata.has("dtype")) {
        dtype = dtype_from_name(metadata.text("dtype"));
        if (!dtype) metadata.refuse("dtype", "\"float32\", \"float16\" or \"bfloat16\"");
    }
    check_small_checksums(metadata, files, path_);
    const auto entries = parse_manifest(files.index, tokens_, path_ + "/index.bin");
    if (entries.empty()) user_error("{}: holds no tokens (total_tokens = 0)", path_);

    // Rank 0 looks at the folder; the others get what it found.
    json found;
    communicator.together([&] {
        if (communicator.rank() != 0) return;
        found["suffixes"] = json::array();
        for (const ManifestEntry& entry : entries)
            found["suffixes"].push_back(chunk_suffix(path_, entry.chunk));
        const H5File first = H5File::open(
            chunk_path(path_, entries[0].chunk, found["suffixes"][0].get<std::string>()));
        const std::vector<Index> ids = layer_ids_of(first);
        if (static_cast<Index>(ids.size()) != layers)
            user_error("{}: holds {} layer_<id> groups, metadata.json says num_layers = {}",
                       first.path(), ids.size(), layers);
        found["layer_ids"] = ids;
        found["storage"] = static_cast<int>(first.dataset(layer_dataset_name(ids[0], 0)).type());
    });
    found = json::parse(communicator.broadcast(found.dump()));
    layout_.layer_ids = found["layer_ids"].get<std::vector<Index>>();
    if (!dtype) {  // older metadata: the file itself tells
        const auto storage = static_cast<H5Type>(found["storage"].get<int>());
        dtype = storage == H5Type::uint16    ? DType::bfloat16
                : storage == H5Type::float16 ? DType::float16
                                             : DType::float32;
    }
    layout_.dtype = *dtype;
    for (std::size_t i = 0; i < entries.size(); ++i)
        chunks_.push_back(
            {entries[i].chunk, entries[i].rows,
             chunk_path(path_, entries[i].chunk, found["suffixes"][i].get<std::string>())});
    // From here on num_layers and d_model are those of the files.
    look_at_chunks(communicator, options);
    if (!files.stats.empty())
        stats_ = parse_stats(files.stats, layer_ids(), d_model(), path_ + "/norm_stats.json");
    check_constant_columns(communicator);
    verified_.assign(chunks_.size(), false);

    std::string content = fmt::format("{} {}", name_of(layout_.dtype), d_model());
    for (const Index id : layer_ids()) content += fmt::format(" {}", id);
    for (const ChunkInfo& chunk : chunks_) content += fmt::format(" {}:{}", chunk.id, chunk.rows);
    for (const std::uint64_t array : contents_) content += hexadecimal(array);
    for (const LayerStats& layer : stats_)
        for (const ColumnStats* columns : {&layer.inputs, &layer.targets})
            for (const auto* values : {&columns->mean, &columns->std})
                content += hexadecimal(checksum_of(std::as_bytes(std::span(*values))));
    fingerprint_ = (has_checksums_ ? "" : "sampled-") + fingerprint_of(content);
}

void ActivationDataset::look_at_chunks(const Communicator& communicator,
                                       const DatasetOptions& options) {
    const auto arrays = layout_.layer_ids.size() * dataset_parts.size();
    contents_.assign(chunks_.size() * arrays, 0);
    Index without = 0;
    std::vector<std::string> problems;
    communicator.together([&] {
        const Shard mine =
            shard_of(static_cast<Index>(chunks_.size()), communicator.rank(), communicator.size());
        for (auto i = static_cast<std::size_t>(mine.begin); i < static_cast<std::size_t>(mine.end);
             ++i) {
            try {
                const ChunkContent content =
                    look_at_chunk(chunks_[i].path, chunks_[i].rows, layout_);
                std::copy(content.arrays.begin(), content.arrays.end(),
                          contents_.begin() + static_cast<std::ptrdiff_t>(i * arrays));
                if (!content.has_checksums) ++without;
            } catch (const UserError& e) {
                if (options.problems == nullptr) throw;
                problems.emplace_back(e.what());
                ++without;
            }
        }
    });
    communicator.all_reduce_sum(std::span(contents_));
    has_checksums_ = communicator.all_reduce_sum(without) == 0;
    if (options.problems == nullptr) return;
    gather(problems, communicator);
    options.problems->insert(options.problems->end(), problems.begin(), problems.end());
}

/// A column with std 0 is scaled by 1e6, which is right only for one that is constant.
void ActivationDataset::check_constant_columns(const Communicator& communicator) const {
    bool any = false;
    for (const LayerStats& layer : stats_)
        for (const ColumnStats* columns : {&layer.inputs, &layer.targets})
            any = any || std::count(columns->std.begin(), columns->std.end(), 0.0F) > 0;
    if (!any) return;
    communicator.together([&] {
        if (communicator.rank() != 0) return;
        constexpr Index enough_rows = 64;
        const ChunkInfo& chunk = chunks_.front();
        const Index rows = std::min(enough_rows, chunk.rows);
        const H5File file = H5File::open(chunk.path);
        std::vector<std::byte> stored(
            static_cast<std::size_t>(rows * d_model() * size_of(dtype())));
        std::vector<float> values(static_cast<std::size_t>(rows * d_model()));
        for (std::size_t layer = 0; layer < stats_.size(); ++layer)
            for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
                const ColumnStats& columns =
                    part == 0 ? stats_[layer].inputs : stats_[layer].targets;
                open_array(file, layout_, chunk.rows, layer, part).read({0, rows}, stored.data());
                to_float(dtype(), stored.data(), values.data(), rows * d_model());
                for (std::size_t i = 0; i < values.size(); ++i) {
                    const auto c = i % static_cast<std::size_t>(d_model());
                    // bfloat16 keeps 8 bits of the mean, float16 loses what is below 6e-8.
                    const float rounding = std::abs(columns.mean[c]) / 128 + 1e-6F;
                    if (columns.std[c] == 0 && std::abs(values[i] - columns.mean[c]) > rounding)
                        user_error(
                            "{}/norm_stats.json: {}.{}.std[{}] = 0, but the column is not "
                            "constant: {} has {} beside the mean {}; make the statistics anew",
                            path_, layer_ids()[layer], dataset_parts[part], c, chunk.path,
                            values[i], columns.mean[c]);
                }
            }
    });
}

std::span<const std::uint64_t> ActivationDataset::checksums(std::size_t chunk) const {
    CLT_CHECK(has_checksums_);
    const std::size_t arrays = layout_.layer_ids.size() * dataset_parts.size();
    return std::span(contents_).subspan(chunk * arrays, arrays);
}

bool ActivationDataset::must_verify(std::size_t chunk) const {
    return has_checksums_ && (verify_ == VerifyData::always ||
                              (verify_ == VerifyData::first_use && !verified_[chunk]));
}

std::string ActivationDataset::format_1_fingerprint() const {
    std::string text = metadata_;
    for (const ChunkInfo& chunk : chunks_) text += fmt::format(" {}:{}", chunk.id, chunk.rows);
    return fingerprint_of(text);
}

void ActivationDataset::read(std::size_t chunk, Shard range, std::vector<std::byte>& out,
                             const Communicator& communicator) const {
    const ChunkInfo& info = chunks_.at(chunk);
    CLT_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= info.rows);
    const Index row_bytes = d_model() * size_of(dtype());
    const auto step = static_cast<std::size_t>(row_bytes);
    const auto rows = static_cast<std::size_t>(range.size());
    const std::size_t stride = static_cast<std::size_t>(2 * layers()) * step;
    const bool verifies = must_verify(chunk);
    const Shard together = verifies ? union_of(communicator.all_gather(range)) : Shard{};
    out.resize(rows * stride);
    std::vector<std::uint64_t> sums;
    std::exception_ptr failure;
    try {
        const H5File file = H5File::open(info.path, &communicator);
        check_layers(file, layout_.layer_ids);
        std::vector<std::byte> columns(rows * step);
        std::byte* to = out.data();
        for (std::size_t layer = 0; layer < layout_.layer_ids.size(); ++layer)
            for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
                const H5Dataset array = open_array(file, layout_, info.rows, layer, part);
                array.read(range, columns.data());
                for (std::size_t row = 0; row < rows; ++row)
                    std::memcpy(to + row * stride, columns.data() + row * step, step);
                to += step;
                if (!verifies) continue;
                // What nobody asked for counts too: other windows, rows that are held out.
                sums.push_back(
                    (together.size() > 0 ? checksum_of_rows(columns, range.begin, row_bytes) : 0) +
                    checksum_of_range(array, {0, together.begin}, row_bytes, communicator) +
                    checksum_of_range(array, {together.end, info.rows}, row_bytes, communicator));
            }
    } catch (...) {
        failure = std::current_exception();
    }
    communicator.throw_together(failure);
    if (!verifies) return;
    communicator.all_reduce_sum(std::span(sums));
    for (std::size_t i = 0; i < sums.size(); ++i)
        if (sums[i] != checksums(chunk)[i])
            user_error(
                "{}: {} does not match its checksum: it was damaged or changed after it was "
                "written; copy or generate this chunk again",
                info.path, layer_dataset_name(layer_ids()[i / 2], i % 2));
    verified_[chunk] = true;
}

bool ActivationDataset::expects_negative_values() const {
    if (stats_.empty()) return true;
    return std::any_of(stats_.begin(), stats_.end(), [](const LayerStats& layer) {
        const auto negative = [](const ColumnStats& columns) {
            return std::any_of(columns.mean.begin(), columns.mean.end(),
                               [](float mean) { return mean < 0; });
        };
        return negative(layer.inputs) || negative(layer.targets);
    });
}

void ActivationDataset::refuse_lost_signs(const Communicator& communicator) const {
    // With a checksum it is ours, and we keep signs. Of honest activations about half are negative:
    // that a thousand are not is no chance, and all layers' inputs behind a ReLU there are none.
    constexpr Index enough_rows = 64;
    constexpr Index enough_values = 1024;
    if (dtype() != DType::bfloat16 || has_checksums_ || !expects_negative_values()) return;
    const Index rows = std::min(enough_rows, chunks_.front().rows);
    if (rows * 2 * layers() * d_model() < enough_values) return;
    std::vector<std::byte> values;
    read(0, shard_of(rows, communicator.rank(), communicator.size()), values, communicator);
    if (!communicator.agree(!any_sign_bit(values))) return;
    user_error(
        "{}: no bfloat16 value is negative: crosslayer-coding wrote all negative values as 0; "
        "generate the data set anew (clt generate, or activation_dtype = \"float32\" there)",
        path_);
}

}  // namespace clt
