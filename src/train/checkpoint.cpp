#include "clt/train/checkpoint.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/io/file.hpp"
#include "train/checkpoint_format.hpp"
#include "train/checkpoint_parts.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

// Arrays pass through host memory in pieces of this size: a device's memory is not the host's.
constexpr Index staging_bytes = Index{64} << 20;

constexpr const char* temporary_suffix = ".tmp";

constexpr Index ceil_div(Index n, Index parts) {
    return (n + parts - 1) / parts;
}

// Calls transfer(rows) over `own`, piece by piece; every rank makes the same number of calls, so
// `most` is the largest range of any rank.
template <class Transfer>
void by_pieces(Shard own, Index most, Index row_bytes, Transfer&& transfer) {
    const Index piece = std::max<Index>(1, staging_bytes / std::max<Index>(1, row_bytes));
    for (Index done = 0; done == 0 || done < most; done += piece) {
        const Index begin = std::min(own.end, own.begin + done);
        transfer(Shard{begin, std::min(own.end, begin + piece)});
    }
}

// Host memory that grows to the largest piece and stays.
class Staging {
  public:
    template <class T>
    std::span<T> of(Index count) {
        const auto n = static_cast<std::size_t>(count);
        if (bytes_.size() < n * sizeof(T)) bytes_.resize(n * sizeof(T));
        return {reinterpret_cast<T*>(bytes_.data()), n};
    }

  private:
    std::vector<std::byte> bytes_;
};

template <class T>
std::uint64_t read_part(const H5File& file, Backend& backend, const ProcessGrid& grid,
                        const ArrayPart<T>& part, Staging& memory) {
    const H5Dataset dataset = file.dataset(part.name);
    if (dataset.type() != file_type(static_cast<T*>(nullptr)) || dataset.rows() != part.file_rows ||
        dataset.cols() != part.width)
        user_error("{}: array {} is [{}, {}], expected [{}, {}]{}", file.path(), part.name,
                   dataset.rows(), dataset.cols(), part.file_rows, part.width,
                   dataset.type() == file_type(static_cast<T*>(nullptr)) ? "" : " of another type");
    const Index most =
        part.everywhere ? part.file_rows : ceil_div(part.file_rows, grid.feature_parts());
    std::uint64_t sum = 0;
    by_pieces(part.rows, most, part.width * static_cast<Index>(sizeof(T)), [&](Shard rows) {
        const Index count = rows.size() * part.width;
        const std::span<T> staging = memory.of<T>(count);
        dataset.read(rows, staging.data());
        sum += checksum_of(staging.data(), count, rows.begin * part.width);
        backend.upload(std::span<const T>(staging),
                       part.values.subspan((rows.begin - part.rows.begin) * part.width, count));
    });
    return part.everywhere && grid.feature_index() > 0 ? 0 : sum;  // counted once a replica
}

CheckpointTexts load_texts(const std::string& path) {
    return read_texts(H5File::open(path));
}

void refuse_other_model(const CheckpointInfo& info, const Params& params, bool thresholds) {
    const Shape& shape = params.shape();
    if (!(info.shape == shape))
        user_error(
            "{}: a checkpoint of a model with {} layers, d_model {} and {} features a layer; this "
            "job's model has {} layers, d_model {} and {} features",
            info.path, info.shape.layers, info.shape.d_model, info.shape.features, shape.layers,
            shape.d_model, shape.features);
    if ((info.activation == "jumprelu") != thresholds)
        user_error(
            "{}: a checkpoint of a {} model, which has {}thresholds; this job's model has {}",
            info.path, info.activation, thresholds ? "no " : "",
            thresholds ? "some (jumprelu)" : "none");
}

// step_<number>.h5 of a folder, newest first. Names that are not ours are left alone.
std::vector<std::string> list_checkpoints(const std::string& folder) {
    std::vector<std::pair<Index, std::string>> found;
    std::error_code code;
    for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code)) {
        const std::string name = entry->path().filename().string();
        if (!name.starts_with("step_") || !name.ends_with(".h5")) continue;
        const std::string digits = name.substr(5, name.size() - 8);
        if (digits.empty() || digits.size() > 18 ||
            digits.find_first_not_of("0123456789") != std::string::npos)
            continue;
        found.emplace_back(std::stoll(digits), entry->path().string());
    }
    if (code) user_error("{}: the folder cannot be read: {}", folder, code.message());
    std::sort(found.rbegin(), found.rend());
    std::vector<std::string> paths;
    for (auto& [unused, path] : found) paths.push_back(std::move(path));
    return paths;
}

}  // namespace

CheckpointState read_checkpoint(const std::string& path, Backend& backend, const ProcessGrid& grid,
                                Params& params, Span<Index> silence, bool moments) {
    const Communicator& all = grid.all();
    CheckpointTexts texts;
    all.together([&] {
        if (all.rank() == 0) texts = load_texts(path);
    });
    texts = broadcast(texts, all);
    const CheckpointInfo info = info_from(path, texts);
    const Checksums expected = checksums_from(path, texts);
    const std::vector<ArrayPart<float>> parameters = parameter_parts(params, moments);
    const bool thresholds = std::any_of(parameters.begin(), parameters.end(), [](const auto& part) {
        return part.name.starts_with("value/threshold/");
    });
    refuse_other_model(info, params, all.all_reduce_max(Index{thresholds ? 1 : 0}) > 0);

    const H5File file = H5File::open(path, &all);
    std::vector<std::string> names;
    std::vector<std::uint64_t> sums;
    Staging memory;
    const auto read = [&](const auto& parts) {
        for (const auto& part : parts) {
            all.stop_point("a checkpoint was read");
            sums.push_back(read_part(file, backend, grid, part, memory));
            names.push_back(part.name);
        }
    };
    read(parameters);
    // A shard may be empty: only all ranks together say that silence is not wanted.
    if (all.all_reduce_max(silence.size()) > 0) read(silence_parts(params, silence));
    grid.feature().all_reduce_sum(std::span(sums));
    all.together([&] {
        for (std::size_t i = 0; i < names.size(); ++i) {
            const auto sum = expected.find(names[i]);
            if (sum == expected.end() || sum->second != sums[i])
                user_error("{}: the checkpoint is damaged: array {} does not match its checksum",
                           path, names[i]);
        }
    });
    params.values_changed();
    return info.state;
}

CheckpointInfo inspect_checkpoint(const std::string& path, const Communicator& communicator) {
    CheckpointTexts texts;
    communicator.together([&] {
        if (communicator.rank() == 0) texts = load_texts(path);
    });
    return info_from(path, broadcast(texts, communicator));
}

std::vector<std::string> verify_checkpoint(const std::string& path,
                                           const Communicator& communicator) {
    CheckpointTexts texts;
    communicator.together([&] {
        if (communicator.rank() == 0) texts = load_texts(path);
    });
    texts = broadcast(texts, communicator);
    const H5File file = H5File::open(path, &communicator);
    std::vector<std::string> problems;
    for (const auto& [name, expected] : checksums_from(path, texts)) {
        if (name == "texts") continue;  // load_texts() compared it
        const H5Dataset dataset = file.dataset(name);
        const Shard own = shard_of(dataset.rows(), communicator.rank(), communicator.size());
        const Index row_bytes = dataset.cols() * size_of(dataset.type());
        const bool floats = dataset.type() == H5Type::float32;
        std::uint64_t sum = 0;
        Index not_finite = std::numeric_limits<Index>::max();
        std::vector<std::byte> staging;
        by_pieces(own, ceil_div(dataset.rows(), communicator.size()), row_bytes, [&](Shard rows) {
            const Index count = rows.size() * dataset.cols();
            const Index first = rows.begin * dataset.cols();
            staging.resize(static_cast<std::size_t>(rows.size() * row_bytes));
            dataset.read(rows, staging.data());
            if (!floats) {
                sum += checksum_of(reinterpret_cast<const Index*>(staging.data()), count, first);
                return;
            }
            const auto* values = reinterpret_cast<const float*>(staging.data());
            sum += checksum_of(values, count, first);
            const auto* bad =
                std::find_if(values, values + count, [](float x) { return !std::isfinite(x); });
            if (bad != values + count) not_finite = std::min(not_finite, first + (bad - values));
        });
        if (communicator.all_reduce_sum(sum) != expected)
            problems.push_back(fmt::format("{}: array {} does not match its checksum", path, name));
        not_finite = communicator.all_reduce_min(not_finite);
        if (not_finite != std::numeric_limits<Index>::max())
            problems.push_back(fmt::format("{}: array {} is NaN or infinite in row {}, column {}",
                                           path, name, not_finite / dataset.cols(),
                                           not_finite % dataset.cols()));
    }
    return problems;
}

std::optional<CheckpointInfo> find_newest_checkpoint(const std::string& folder,
                                                     const Communicator& communicator) {
    std::string path;
    CheckpointTexts texts;
    communicator.together([&] {
        if (communicator.rank() != 0) return;
        for (const std::string& candidate : list_checkpoints(folder)) {
            try {
                texts = load_texts(candidate);
                info_from(candidate, texts);
                path = candidate;
                return;
            } catch (const std::runtime_error& e) {
                log_warning("passing over a checkpoint that is not whole: {}", e.what());
            }
        }
    });
    path = communicator.broadcast(path);
    if (path.empty()) return std::nullopt;
    return info_from(path, broadcast(texts, communicator));
}

void prune_checkpoints(const std::string& folder, Index keep, const std::string& best) {
    std::vector<std::string> doomed;
    const std::vector<std::string> newest_first = list_checkpoints(folder);
    for (std::size_t i = 0; i < newest_first.size(); ++i)
        if (static_cast<Index>(i) >= keep && fs::path(newest_first[i]).filename() != best)
            doomed.push_back(newest_first[i]);
    for (const std::string& name : names_in(folder))
        if (name.starts_with("step_") && name.ends_with(std::string(".h5") + temporary_suffix))
            doomed.push_back((fs::path(folder) / name).string());
    for (const std::string& path : doomed) {
        std::error_code code;
        fs::remove(path, code);
        if (code) log_warning("{}: cannot be removed: {}", path, code.message());
    }
}

}  // namespace clt
