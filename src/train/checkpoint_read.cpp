// A file to parameters, and what is wrong with one.
#include <algorithm>

#include "clt/base/error.hpp"
#include "clt/base/stop.hpp"
#include "train/checkpoint_format.hpp"
#include "train/checkpoint_parts.hpp"

namespace clt {
namespace {

// Arrays pass through host memory in pieces of this size: a device's memory is not the host's.
constexpr Index staging_bytes = Index{32} << 20;

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
using Staging = std::vector<std::byte>;

// Throws Stopped when a signal has come.
void stop_here(H5File& file, const Communicator& all) {
    if (!all.stop_requested_anywhere()) return;
    file.close();
    stopped_while("a checkpoint was read");
}

// What one rank found in its rows of an array; all ranks' together tell what is wrong with it.
struct Findings {
    explicit Findings(const StoredArray& array) : sums(array.block_sums.size(), 0) {}

    std::vector<std::uint64_t> sums;
    Index not_finite = all_finite;
};

// Reads rows `own` of the array and passes them on.
template <class Use>
Findings read_rows(const H5File& file, const StoredArray& array, Shard own, Index most,
                   Staging& staging, Use&& use) {
    const H5Dataset dataset = file.dataset(array.stored_name);
    const Index row_bytes = array.width * size_of(array.type);
    Findings findings(array);
    by_pieces(own, most, row_bytes, [&](Shard rows) {
        const auto bytes = static_cast<std::size_t>(rows.size() * row_bytes);
        if (staging.size() < bytes) staging.resize(bytes);
        dataset.read(rows, staging.data());
        add_block_sums(array, array.block_rows, rows, staging.data(), findings.sums);
        findings.not_finite =
            std::min(findings.not_finite, first_not_finite(array, rows, staging.data()));
        use(rows, staging.data());
    });
    return findings;
}

// Sentences without the file's name. Collective over ranks that have read every row once.
std::vector<std::string> judge(const StoredArray& array, Findings findings,
                               const Communicator& readers) {
    std::vector<std::string> problems;
    readers.all_reduce_sum(std::span(findings.sums));
    findings.not_finite = readers.all_reduce_min(findings.not_finite);
    for (std::size_t block = 0; block < findings.sums.size(); ++block)
        if (findings.sums[block] != array.block_sums[block])
            problems.push_back(damaged_block_text(array, block));
    if (findings.not_finite != all_finite)
        problems.push_back(not_finite_text(array, findings.not_finite));
    return problems;
}

const StoredArray& find(const CheckpointHeader& header, const std::string& name) {
    for (const StoredArray& array : header.arrays)
        if (array.name == name) return array;
    user_error("{}: array {} is missing", header.path, name);
}

// The file's array for this part.
template <class T>
const StoredArray& stored_array(const CheckpointHeader& header, const ArrayPart<T>& part) {
    const StoredArray& array = find(header, part.name);
    const H5Type type = file_type(static_cast<const T*>(nullptr));
    if (array.type != type || array.rows != part.file_rows || array.width != part.width)
        user_error("{}: array {} is [{}, {}], expected [{}, {}]{}", header.path, array.stored_name,
                   array.rows, array.width, part.file_rows, part.width,
                   array.type == type ? "" : " of another type");
    return array;
}

// Fills the part and returns what is wrong, in the words of judge().
template <class T>
std::vector<std::string> read_part(const H5File& file, const StoredArray& array, Backend& backend,
                                   const ProcessGrid& grid, const ArrayPart<T>& part,
                                   Staging& staging) {
    const bool replicated = part.role == ArrayRole::replicated;
    const Index most = replicated ? part.file_rows : ceil_div(part.file_rows, grid.feature_parts());
    Findings findings =
        read_rows(file, array, part.rows, most, staging, [&](Shard rows, const std::byte* data) {
            const Index count = rows.size() * part.width;
            const std::span<const T> values(reinterpret_cast<const T*>(data),
                                            static_cast<std::size_t>(count));
            backend.upload(values,
                           part.values.subspan((rows.begin - part.rows.begin) * part.width, count));
        });
    if (replicated && grid.feature_index() > 0) findings = Findings(array);  // counted once
    return judge(array, std::move(findings), grid.feature());
}

void refuse_other_model(const CheckpointHeader& header, const Params& params, bool thresholds) {
    const Shape& shape = params.shape();
    if (!(header.shape == shape))
        user_error(
            "{}: a checkpoint of a model with {} layers, d_model {} and {} features a layer; this "
            "job's model has {} layers, d_model {} and {} features",
            header.path, header.shape.layers, header.shape.d_model, header.shape.features,
            shape.layers, shape.d_model, shape.features);
    if ((header.model.activation == "jumprelu") != thresholds)
        user_error(
            "{}: a checkpoint of a {} model, which has {}thresholds; this job's model has {}",
            header.path, header.model.activation, thresholds ? "no " : "",
            thresholds ? "some (jumprelu)" : "none");
}

}  // namespace

CheckpointHeader read_checkpoint_header(const std::string& path, const Communicator& communicator) {
    StoredHeader stored;
    communicator.together([&] {
        if (communicator.rank() == 0) stored = load_header(path);
    });
    return header_from(path, broadcast(std::move(stored), communicator));
}

void read_checkpoint(const CheckpointHeader& header, Backend& backend, const ProcessGrid& grid,
                     Params& params, Span<Index> silence, bool moments) {
    const Communicator& all = grid.all();
    const std::vector<ArrayPart<float>> parameters = parameter_parts(params, moments);
    const bool thresholds = std::any_of(parameters.begin(), parameters.end(), [](const auto& part) {
        return part.name.starts_with("value/log_threshold/");
    });
    refuse_other_model(header, params, thresholds);

    // A shard may be empty: only all ranks together say that silence is not wanted.
    std::vector<ArrayPart<Index>> counters;
    if (all.all_reduce_max(silence.size()) > 0) counters = silence_parts(params, silence);
    for (const auto& part : parameters) stored_array(header, part);
    for (const auto& part : counters) stored_array(header, part);

    H5File file = H5File::open(header.path, &all);
    Staging staging;
    const auto read = [&](const auto& parts) {
        for (const auto& part : parts) {
            stop_here(file, all);
            const std::vector<std::string> problems =
                read_part(file, stored_array(header, part), backend, grid, part, staging);
            if (all.agree(problems.empty())) continue;
            file.close();
            all.together([&] {  // replicas read for themselves
                if (!problems.empty()) user_error("{}: {}", header.path, problems.front());
            });
        }
    };
    read(parameters);
    read(counters);
    file.close();
    params.values_changed();
}

std::vector<std::string> verify_checkpoint(const CheckpointHeader& header,
                                           const Communicator& communicator, bool stoppable) {
    H5File file = H5File::open(header.path, &communicator);
    std::vector<std::string> problems;
    Staging staging;
    for (const StoredArray& array : header.arrays) {
        if (stoppable) stop_here(file, communicator);
        const Shard own = shard_of(array.rows, communicator.rank(), communicator.size());
        Findings findings = read_rows(file, array, own, ceil_div(array.rows, communicator.size()),
                                      staging, [](Shard, const std::byte*) {});
        for (const std::string& problem : judge(array, std::move(findings), communicator))
            problems.push_back(fmt::format("{}: {}", header.path, problem));
    }
    return problems;
}

}  // namespace clt
