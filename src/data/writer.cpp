#include "clt/data/writer.hpp"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clt/base/version.hpp"
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
            if (Difference d = difference(key + " " + inner, other, value); !d.key.empty())
                return d;
        }
    if (was.is_array() && is.is_array() && was.size() == is.size())
        for (std::size_t i = 0; i < is.size(); ++i) {
            const bool named = is[i].is_object() && was[i].is_object() && is[i].contains("name") &&
                               was[i].contains("name") && is[i]["name"] == was[i]["name"];
            const std::string place = named ? shown(is[i]["name"]) : std::to_string(i + 1);
            if (Difference d = difference(key + " " + place, was[i], is[i]); !d.key.empty())
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
        CLT_CHECK(
            !all.contains(key) && key != "total_tokens" && key != "created" && key != "generator",
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
    Index total_tokens = 0;
    if (!metadata.empty()) {
        const JsonObject was = JsonObject::parse(metadata, folder + "/metadata.json");
        check_same_settings(was, now, folder);
        total_tokens = was.integer("total_tokens", 0);
        complete_ = true;
    }
    if (progress.empty()) {
        if (complete_) {
            communicator_.together([&] {
                if (communicator_.rank() != 0) return;
                for (const ManifestEntry& entry : parse_manifest(
                         read_file(folder + "/index.bin"), total_tokens, folder + "/index.bin"))
                    rows_.push_back(entry.rows);
            });
            rows_.resize(static_cast<std::size_t>(
                communicator_.broadcast(static_cast<Index>(rows_.size()))));
            communicator_.broadcast(std::span<Index>(rows_));
        }
        return;
    }
    const std::string file = folder + "/progress.bin";
    const std::size_t end = progress.find('\n');
    const JsonObject head = JsonObject::parse(std::string_view(progress).substr(0, end), file);
    check_same_settings(head.object("settings"), now, folder);
    rows_ = head.integers("rows", 1);
    caller_state_ = head.text("caller_state");
    if (end == std::string::npos ||
        !statistics_->restore(std::string_view(progress).substr(end + 1)))
        user_error("{}: damaged; remove the folder to start anew", file);
    communicator_.together([&] {
        if (communicator_.rank() != 0) return;
        for (std::size_t i = 0; i < rows_.size(); ++i)
            if (const auto path = fmt::format("{}/chunk_{}.hdf5", folder, i); !path_exists(path))
                user_error("{}: missing, but progress.bin lists it", path);
    });
}

void DatasetWriter::save_progress() const {
    const ordered_json head{{"settings", ordered_json::parse(settings())},
                            {"rows", rows_},
                            {"caller_state", caller_state_}};
    communicator_.together([&] {
        if (communicator_.rank() == 0)
            write_file(config_.folder + "/progress.bin", head.dump() + '\n' + statistics_->save());
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
        const auto bad =
            std::find_if(rows.begin(), rows.end(), [](float x) { return !std::isfinite(x); });
        if (bad == rows.end()) return;
        const Index at = bad - rows.begin();
        user_error("{}: activation {} at layer {}, token {} of chunk {}; nothing of it is kept",
                   config_.folder, *bad, at % width / (2 * config_.d_model), first + at / width,
                   rows_.size());
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

void DatasetWriter::write_file_of_chunk(const std::string& path, std::span<const float> rows,
                                        const std::vector<Index>& counts) const {
    const Index total = std::accumulate(counts.begin(), counts.end(), Index{0});
    const Index d_model = config_.d_model;
    RowExchange exchange(chunk_permutation(config_.seed, static_cast<Index>(rows_.size()), total),
                         counts, communicator_);
    std::exception_ptr failure;
    try {
        H5File file = H5File::create(path, &communicator_);
        for (Index layer = 0; layer < config_.layers; ++layer)
            for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
                H5Dataset dataset = file.create_dataset(
                    layer_dataset_name(layer, part), storage_of(config_.dtype), total, d_model,
                    std::min(total, hdf5_chunk_rows), config_.gzip);
                const Index column = (2 * layer + static_cast<Index>(part)) * d_model;
                dataset.write(exchange.stored_rows(),
                              exchange.exchange(rows.data() + column, 2 * config_.layers * d_model,
                                                d_model, config_.dtype));
            }
        file.close();
    } catch (...) {
        failure = std::current_exception();
    }
    communicator_.throw_together(failure);
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
        write_file(config_.folder + "/index.bin", format_manifest(manifest));
        write_file(config_.folder + "/norm_stats.json", stats.dump());
        write_file(config_.folder + "/metadata.json", metadata.dump(2) + '\n');
        remove_file(config_.folder + "/progress.bin");
    });
    complete_ = true;
    lock_.reset();
}

}  // namespace clt
