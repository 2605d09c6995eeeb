#include "clt/data/writer.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <ctime>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clt/base/version.hpp"
#include "clt/data/chunk_file.hpp"
#include "clt/data/dataset.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/io/json.hpp"
#include "data/column_statistics.hpp"
#include "data/manifest.hpp"
#include "data/row_exchange.hpp"
#include "data/storage.hpp"

namespace clt {
namespace {

using nlohmann::ordered_json;

constexpr Index hdf5_chunk_rows = 16384;  // the reference's

std::string local_time() {
    const std::time_t now = std::time(nullptr);
    std::tm fields{};
    localtime_r(&now, &fields);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &fields);
    return text;
}

struct Difference {
    std::string key, was, is;  // all empty: none
};

/// The innermost value that differs; an object of a list is called by its "name".
/// Example: {text_files "b.txt" content, "0a..", "7c.."}
Difference difference(const std::string& key, const Json& was, const Json& is) {
    if (was == is) return {};
    if (was.is_object() && is.is_object())
        for (const auto& [inner, value] : is.items()) {
            const auto found = was.find(inner);
            const Json other = found == was.end() ? Json() : *found;
            if (Difference d = difference(fmt::format("{} {}", key, inner), other, value);
                !d.key.empty())
                return d;
        }
    if (was.is_array() && is.is_array() && was.size() == is.size())
        for (std::size_t i = 0; i < is.size(); ++i) {
            const bool named = is[i].is_object() && was[i].is_object() && is[i].contains("name") &&
                               was[i].contains("name") && is[i]["name"] == was[i]["name"];
            const std::string place = named ? shown(is[i]["name"]) : std::to_string(i + 1);
            if (Difference d = difference(fmt::format("{} {}", key, place), was[i], is[i]);
                !d.key.empty())
                return d;
        }
    return {key, shown(was), shown(is)};
}

/// Throws UserError naming the first setting that differs.
void check_same_settings(const JsonObject& was, const ordered_json& is, const std::string& folder) {
    for (const auto& [key, value] : is.items()) {
        const auto found = was.json().find(key);
        if (found == was.json().end())
            user_error(
                "{}: already holds activations of an older clt, which did not record {}; choose "
                "another folder or remove it",
                folder, key);
        const auto differs = difference(key, *found, Json(value));
        if (differs.key.empty()) continue;
        user_error(
            "{}: already holds activations made with {} = {}, this job says {}; choose another "
            "folder or remove it",
            folder, differs.key, differs.was, differs.is);
    }
}

/// The smallest magnitude that `type` rounds to infinity.
float first_beyond(DType type) {
    switch (type) {
        case DType::float16:
            return 65520.0F;
        case DType::bfloat16:
            return std::bit_cast<float>(0x7F7F8000U);
        case DType::float32:
            break;
    }
    return std::numeric_limits<float>::infinity();
}

float largest_finite(DType type) {
    return type == DType::float16 ? float16_to_float(0x7BFF) : bfloat16_to_float(0x7F7F);
}

ordered_json section(const std::vector<double>& mean, const std::vector<double>& deviation,
                     Index begin, Index d_model) {
    const auto rounded = [&](const std::vector<double>& values) {
        return std::vector<float>(values.begin() + begin, values.begin() + begin + d_model);
    };
    return {{"mean", rounded(mean)}, {"std", rounded(deviation)}};
}

}  // namespace

DatasetWriter::DatasetWriter(const DatasetWriterConfig& config, const Communicator& communicator)
    : config_(config),
      communicator_(communicator.duplicate()),
      statistics_(std::make_unique<ColumnStatistics>(2 * config.layers * config.d_model)) {
    CLT_CHECK(config_.layers > 0 && config_.d_model > 0);
    communicator_.together([&] {
        if (communicator_.rank() == 0) make_writable_folder(config_.folder);
    });
    lock_.emplace(config_.folder, communicator_);
    resume();
    if (complete_) lock_.reset();
}

DatasetWriter::DatasetWriter(DatasetWriter&&) noexcept = default;
DatasetWriter::~DatasetWriter() = default;

Index DatasetWriter::tokens() const {
    return std::accumulate(rows_.begin(), rows_.end(), Index{0});
}

/// metadata.json without what is known only at the end: two jobs that agree here write the same
/// data.
std::string DatasetWriter::settings() const {
    ordered_json all{{"model_name", config_.model_name},
                     {"dataset", config_.dataset},
                     {"split", config_.split},
                     {"num_layers", config_.layers},
                     {"d_model", config_.d_model},
                     {"dtype", std::string(name_of(config_.dtype))},
                     {"chunk_tokens", config_.chunk_tokens},
                     {"seed", config_.seed},
                     {"gzip", config_.gzip}};
    const auto further = ordered_json::parse(config_.provenance);
    CLT_CHECK(further.is_object(), "provenance is not a JSON object");
    for (const auto& [key, value] : further.items()) {
        CLT_CHECK(!all.contains(key) && key != "total_tokens" && key != "created" &&
                      key != "generator" && key != "checksums",
                  "provenance repeats {}", key);
        all[key] = value;
    }
    return all.dump();
}

void DatasetWriter::resume() {
    const std::string folder = config_.folder;
    std::string metadata;
    std::string progress;
    communicator_.together([&] {
        if (communicator_.rank() != 0) return;
        if (path_exists(folder + "/metadata.json")) metadata = read_file(folder + "/metadata.json");
        if (path_exists(folder + "/progress.bin")) progress = read_file(folder + "/progress.bin");
    });
    metadata = communicator_.broadcast(metadata);
    progress = communicator_.broadcast(progress);
    const auto now = ordered_json::parse(settings());
    if (!metadata.empty()) {
        check_same_settings(JsonObject::parse(metadata, folder + "/metadata.json"), now, folder);
        complete_ = true;
    }
    if (complete_) {
        // Opening it proves that everything is there.
        const ActivationDataset whole(folder, communicator_);
        for (const ChunkInfo& chunk : whole.chunks()) rows_.push_back(chunk.rows);
        return;
    }
    if (progress.empty()) return;
    // A line with the checksum of the rest, a line of JSON, the statistics.
    const std::size_t first = std::min(progress.find('\n'), progress.size() - 1) + 1;
    const std::string_view rest = std::string_view(progress).substr(first);
    const std::size_t end = rest.find('\n');
    const std::string file = folder + "/progress.bin";
    if (progress.substr(0, first) != file_checksum(rest) + '\n' || end == std::string::npos)
        user_error("{}: damaged, or of an older clt; remove the folder to start anew", file);
    const JsonObject head = JsonObject::parse(rest.substr(0, end), file);
    check_same_settings(head.object("settings"), now, folder);
    rows_ = head.integers("rows", 1);
    caller_state_ = head.text("caller_state");
    if (!statistics_->restore(rest.substr(end + 1)))
        user_error("{}: damaged; remove the folder to start anew", file);
    const ChunkLayout layout = chunk_layout();
    communicator_.together([&] {
        const Shard mine = shard_of(chunks(), communicator_.rank(), communicator_.size());
        for (Index i = mine.begin; i < mine.end; ++i) {
            const auto path = fmt::format("{}/chunk_{}.hdf5", folder, i);
            if (!path_exists(path)) user_error("{}: missing, but progress.bin lists it", path);
            look_at_chunk(path, rows_[static_cast<std::size_t>(i)], layout);
        }
    });
}

ChunkLayout DatasetWriter::chunk_layout() const {
    ChunkLayout layout{{}, config_.d_model, config_.dtype};
    for (Index layer = 0; layer < config_.layers; ++layer) layout.layer_ids.push_back(layer);
    return layout;
}

void DatasetWriter::save_progress() const {
    const ordered_json head{{"settings", ordered_json::parse(settings())},
                            {"rows", rows_},
                            {"caller_state", caller_state_}};
    communicator_.together([&] {
        if (communicator_.rank() != 0) return;
        const std::string rest = head.dump() + '\n' + statistics_->save();
        write_file(config_.folder + "/progress.bin", file_checksum(rest) + '\n' + rest);
    });
}

void DatasetWriter::write_chunk(std::span<const float> rows, const std::string& caller_state) {
    CLT_CHECK(!complete_);
    const Index width = 2 * config_.layers * config_.d_model;
    CLT_CHECK(static_cast<Index>(rows.size()) % width == 0);
    const std::vector<Index> counts =
        communicator_.all_gather(static_cast<Index>(rows.size()) / width);
    const Index total = std::accumulate(counts.begin(), counts.end(), Index{0});
    if (total == 0) return;

    const Index first =
        communicator_.exclusive_sum(counts[static_cast<std::size_t>(communicator_.rank())]);
    communicator_.together([&] {
        // As it will be stored: what the type rounds to infinity is refused like infinity.
        const float beyond = first_beyond(config_.dtype);
        const auto bad = std::find_if(rows.begin(), rows.end(),
                                      [&](float x) { return !(std::abs(x) < beyond); });
        if (bad == rows.end()) return;
        const Index at = bad - rows.begin();
        const std::string what =
            fmt::format("{}: activation {} at layer {}, token {} of chunk {}", config_.folder, *bad,
                        at % width / (2 * config_.d_model), first + at / width, rows_.size());
        if (!std::isfinite(*bad)) user_error("{}; nothing of it is kept", what);
        user_error("{} is beyond {} ({}); use data.dtype = {}; nothing of the chunk is kept", what,
                   name_of(config_.dtype), largest_finite(config_.dtype),
                   config_.dtype == DType::float16 ? "\"bfloat16\" or \"float32\"" : "\"float32\"");
    });

    const std::string path = fmt::format("{}/chunk_{}.hdf5", config_.folder, rows_.size());
    write_file_of_chunk(path + ".tmp", rows, counts);
    communicator_.together([&] {
        if (communicator_.rank() == 0) publish_file(path + ".tmp", path);
    });
    statistics_->add(rows, communicator_);
    rows_.push_back(total);
    caller_state_ = communicator_.broadcast(caller_state);
    save_progress();
}

// Collective, whether or not a rank has rows.
void DatasetWriter::write_file_of_chunk(const std::string& path, std::span<const float> rows,
                                        const std::vector<Index>& counts) const {
    const Index total = std::accumulate(counts.begin(), counts.end(), Index{0});
    const Index row_bytes = config_.d_model * size_of(config_.dtype);
    ChunkParts parts;
    parts.rows = total;
    parts.row_bytes = row_bytes;
    // HDF5 chunks have less than 2^32 bytes.
    parts.block_rows = std::max<Index>(
        1,
        std::min({total, hdf5_chunk_rows, std::numeric_limits<std::uint32_t>::max() / row_bytes}));
    RowExchange exchange(chunk_permutation(config_.seed, chunks(), total), counts,
                         config_.gzip > 0 ? parts.block_rows : 1, communicator_);
    parts.own = exchange.stored_rows();
    std::exception_ptr failure;
    try {
        // Compressed, it is written by one process: HDF5's collective write of chunks whose size
        // nobody knows before cannot have its space set aside, and hangs on a full disk.
        std::optional<H5File> file;
        if (config_.gzip == 0)
            file = H5File::create(path, &communicator_);
        else
            communicator_.together([&] {
                if (communicator_.rank() == 0) file = H5File::create(path);
            });
        for (Index layer = 0; layer < config_.layers; ++layer)
            for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
                const Index column = (2 * layer + static_cast<Index>(part)) * config_.d_model;
                const std::span<const std::byte> stored(
                    exchange.exchange(rows.data() + column, 2 * config_.layers * config_.d_model,
                                      config_.d_model, config_.dtype),
                    static_cast<std::size_t>(parts.own.size() * row_bytes));
                const std::uint64_t checksum = communicator_.all_reduce_sum(
                    checksum_of_rows(stored, parts.own.begin, row_bytes));
                const std::string name = layer_dataset_name(layer, part);
                if (config_.gzip > 0) {
                    write_compressed(file, name, parts, stored, checksum);
                    continue;
                }
                H5Dataset array = file->create_dataset(name, storage_of(config_.dtype), total,
                                                       config_.d_model, parts.block_rows);
                array.write(parts.own, stored.data());
                write_checksum(array, checksum);
            }
        if (config_.gzip == 0)
            file->close();
        else
            communicator_.together([&] {
                if (file) file->close();
            });
    } catch (...) {
        failure = std::current_exception();
    }
    communicator_.throw_together(failure);
}

// Every rank compresses its own HDF5 chunks; rank 0 (which has the file) knows their sizes before
// it writes a byte, and gets them rank by rank.
void DatasetWriter::write_compressed(std::optional<H5File>& file, const std::string& name,
                                     const ChunkParts& parts, std::span<const std::byte> stored,
                                     std::uint64_t checksum) const {
    const auto block_bytes = static_cast<std::size_t>(parts.block_rows * parts.row_bytes);
    const Index first_block = parts.own.begin / parts.block_rows;
    const Index blocks = (parts.rows + parts.block_rows - 1) / parts.block_rows;
    const auto own_blocks = static_cast<Index>((stored.size() + block_bytes - 1) / block_bytes);
    std::vector<std::vector<std::byte>> compressed(static_cast<std::size_t>(own_blocks));
    communicator_.together([&] {
        for (Index i = 0; i < own_blocks; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * block_bytes;
            std::span<const std::byte> block =
                stored.subspan(at, std::min(block_bytes, stored.size() - at));
            std::vector<std::byte> filled;
            if (block.size() < block_bytes) {  // the last one
                filled.assign(block.begin(), block.end());
                filled.resize(block_bytes);
                block = filled;
            }
            compressed[static_cast<std::size_t>(i)] = deflate(block, config_.gzip);
        }
    });
    std::vector<Index> sizes(static_cast<std::size_t>(blocks));  // of all HDF5 chunks
    for (Index i = 0; i < own_blocks; ++i)
        sizes[static_cast<std::size_t>(first_block + i)] =
            static_cast<Index>(compressed[static_cast<std::size_t>(i)].size());
    communicator_.all_reduce_sum(std::span(sizes));
    const std::vector<Index> blocks_of = communicator_.all_gather(own_blocks);

    std::optional<H5Dataset> array;
    communicator_.together([&] {
        if (!file) return;
        file->set_aside(std::accumulate(sizes.begin(), sizes.end(), Index{0}), blocks);
        array = file->create_dataset(name, storage_of(config_.dtype), parts.rows, config_.d_model,
                                     parts.block_rows, config_.gzip);
    });
    Index block = 0;
    for (int source = 0; source < communicator_.size(); ++source) {
        const Index end = block + blocks_of[static_cast<std::size_t>(source)];
        const Index bytes = std::accumulate(sizes.begin() + block, sizes.begin() + end, Index{0});
        std::vector<std::byte> sent;
        if (communicator_.rank() == source)
            for (const std::vector<std::byte>& own : compressed)
                sent.insert(sent.end(), own.begin(), own.end());
        const auto ranks = static_cast<std::size_t>(communicator_.size());
        std::vector<Index> send_bytes(ranks);
        std::vector<Index> receive_bytes(ranks);
        if (communicator_.rank() == source) send_bytes[0] = bytes;
        if (file) receive_bytes[static_cast<std::size_t>(source)] = bytes;
        std::vector<std::byte> received(static_cast<std::size_t>(file ? bytes : 0));
        communicator_.all_to_all(sent.data(), send_bytes, received.data(), receive_bytes);
        communicator_.together([&] {
            std::size_t at = 0;
            for (; block < end; ++block) {
                const auto size = static_cast<std::size_t>(sizes[static_cast<std::size_t>(block)]);
                if (array)
                    array->write_deflated(block * parts.block_rows,
                                          std::span(received).subspan(at, size));
                at += size;
            }
        });
    }
    communicator_.together([&] {
        if (array) write_checksum(*array, checksum);
    });
}

void DatasetWriter::finish() {
    if (complete_) return;
    const Index d_model = config_.d_model;
    communicator_.together([&] {
        if (communicator_.rank() != 0) return;
        std::vector<ManifestEntry> manifest;
        for (std::size_t i = 0; i < rows_.size(); ++i)
            manifest.push_back({static_cast<Index>(i), rows_[i]});
        const std::vector<double> deviation = statistics_->standard_deviation();
        ordered_json stats = ordered_json::object();
        for (Index layer = 0; layer < config_.layers; ++layer)
            for (Index part = 0; part < 2; ++part)
                stats[std::to_string(layer)][dataset_parts[static_cast<std::size_t>(part)]] =
                    section(statistics_->mean(), deviation, (2 * layer + part) * d_model, d_model);
        auto metadata = ordered_json::parse(settings());
        metadata["total_tokens"] = tokens();
        metadata["created"] = local_time();
        metadata["generator"] = fmt::format("clt {} ({})", version(), revision());
        const std::string index = format_manifest(manifest);
        const std::string statistics = stats.dump();
        metadata["checksums"] = {{"index.bin", file_checksum(index)},
                                 {"norm_stats.json", file_checksum(statistics)}};
        write_file(config_.folder + "/index.bin", index);
        write_file(config_.folder + "/norm_stats.json", statistics);
        write_file(config_.folder + "/metadata.json", metadata.dump(2) + '\n');
        remove_file(config_.folder + "/progress.bin");
    });
    complete_ = true;
    lock_.reset();
}

}  // namespace clt
