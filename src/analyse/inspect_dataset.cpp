// Activation data sets and their chunks.
#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "analyse/inspect_parts.hpp"
#include "clt/base/error.hpp"
#include "clt/data/chunk_file.hpp"
#include "clt/data/dataset.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/io/json.hpp"

namespace clt {
namespace {

// What a rank holds of a chunk at a time.
constexpr Index staging_bytes = Index{64} << 20;

// What is seen of one layer's inputs or targets while the rows of a chunk pass by.
struct ColumnsSeen {
    std::uint64_t checksum = 0;
    Index bad_row = std::numeric_limits<Index>::max();  // first with a number that is not finite
    bool nonzero = false;
};

struct ChunkSeen {
    explicit ChunkSeen(Index layers) : columns(static_cast<std::size_t>(2 * layers)) {}
    std::vector<ColumnsSeen> columns;  // [layer, inputs | targets]
    bool sign = false;

    void look(std::size_t column, DType type, const std::byte* row, Index width, Index row_number) {
        ColumnsSeen& seen = columns[column];
        seen.checksum += checksum_of_rows({row, static_cast<std::size_t>(width * size_of(type))},
                                          row_number, width * size_of(type));
        if (row_number < seen.bad_row && first_not_finite(type, row, width) < width)
            seen.bad_row = row_number;
        // A set bit beside the sign makes a value other than 0; the sign is looked for in 16-bit
        // data, where the reference loses it.
        if (type == DType::float32) {
            const auto* words = reinterpret_cast<const std::uint32_t*>(row);
            std::uint32_t any = 0;
            for (Index i = 0; i < width; ++i) any |= words[i];
            seen.nonzero = seen.nonzero || (any & 0x7FFFFFFFU) != 0;
            sign = sign || (any >> 31) != 0;
        } else {
            const auto* words = reinterpret_cast<const std::uint16_t*>(row);
            unsigned any = 0;
            for (Index i = 0; i < width; ++i) any |= words[i];
            seen.nonzero = seen.nonzero || (any & 0x7FFFU) != 0;
            sign = sign || (any & 0x8000U) != 0;
        }
    }

    // What all ranks saw together. Collective.
    void merge(const Communicator& all) {
        for (ColumnsSeen& seen : columns) {
            seen.checksum = all.all_reduce_sum(seen.checksum);
            seen.bad_row = all.all_reduce_min(seen.bad_row);
            seen.nonzero = !all.agree(!seen.nonzero);
        }
        sign = !all.agree(!sign);
    }

    /// checksums: what the columns should have; nothing: unknown. signs: values of both signs are
    /// expected.
    void report(const std::string& path, DType type, const std::vector<Index>& layer_ids,
                const std::vector<std::optional<std::uint64_t>>& checksums, bool signs,
                Inspection& out) const {
        const bool clipped = type == DType::bfloat16 && !sign && signs;
        for (std::size_t i = 0; i < columns.size(); ++i) {
            const std::string what = fmt::format("{}: layer_{} {}", path, layer_ids[i / 2],
                                                 i % 2 == 0 ? "inputs" : "targets");
            if (checksums[i] && *checksums[i] != columns[i].checksum)
                out.problems.push_back(fmt::format(
                    "{}: does not match its checksum: damaged or changed after it was written",
                    what));
            if (columns[i].bad_row != std::numeric_limits<Index>::max())
                out.problems.push_back(
                    fmt::format("{}, row {}: NaN or infinite", what, columns[i].bad_row));
            if (!columns[i].nonzero && !clipped)
                out.lines.push_back(fmt::format(
                    "warning: {}: all zeros, as crosslayer-coding leaves a layer whose write "
                    "failed",
                    what));
        }
        if (clipped)
            out.problems.push_back(
                fmt::format("{}: no value is negative: crosslayer-coding writes what is negative "
                            "as 0 when it writes bfloat16",
                            path));
    }
};

void verify_chunk(const ActivationDataset& dataset, std::size_t chunk, const Communicator& all,
                  Inspection& out) {
    const ChunkInfo& info = dataset.chunks()[chunk];
    const Index row_bytes = dataset.d_model() * size_of(dataset.dtype());
    const Index piece =
        std::max<Index>(1, staging_bytes / (2 * dataset.layers() * row_bytes)) * all.size();
    ChunkSeen seen(dataset.layers());
    std::vector<std::byte> rows;
    for (Index begin = 0; begin < info.rows; begin += piece) {
        Shard own = shard_of(std::min(piece, info.rows - begin), all.rank(), all.size());
        own = {own.begin + begin, own.end + begin};
        dataset.read(chunk, own, rows, all);
        const std::byte* at = rows.data();
        for (Index row = own.begin; row < own.end; ++row)
            for (std::size_t column = 0; column < seen.columns.size(); ++column, at += row_bytes)
                seen.look(column, dataset.dtype(), at, dataset.d_model(), row);
    }
    seen.merge(all);
    std::vector<std::optional<std::uint64_t>> checksums(seen.columns.size());
    if (dataset.has_checksums())
        std::copy(dataset.checksums(chunk).begin(), dataset.checksums(chunk).end(),
                  checksums.begin());
    seen.report(info.path, dataset.dtype(), dataset.layer_ids(), checksums,
                !dataset.has_checksums() && dataset.expects_negative_values(), out);
}

std::string join_ids(const std::vector<Index>& ids) {
    const bool dense =
        !ids.empty() && ids.back() - ids.front() + 1 == static_cast<Index>(ids.size());
    if (dense && ids.size() > 1) return fmt::format("{} to {}", ids.front(), ids.back());
    std::string text;
    for (const Index id : ids) text += (text.empty() ? "" : ", ") + std::to_string(id);
    return text;
}

// Rank 0's look at the folder: chunk files that the manifest does not list.
std::vector<std::string> strays(const ActivationDataset& dataset) {
    std::set<std::string> listed;
    for (const ChunkInfo& chunk : dataset.chunks()) listed.insert(file_name(chunk.path));
    std::vector<std::string> found;
    for (const std::string& name : names_in(dataset.path()))
        if (name.starts_with("chunk_") && !listed.contains(name)) found.push_back(name);
    return found;
}

}  // namespace

Inspection inspect_dataset(const std::string& folder, bool verify, const Communicator& all) {
    Inspection out;
    const ActivationDataset dataset(folder, all, {.problems = &out.problems});
    auto& lines = out.lines;
    lines.push_back(fmt::format("{}: activation data set", folder));
    lines.push_back(fmt::format("  layers       {} ({}), d_model {}", dataset.layers(),
                                join_ids(dataset.layer_ids()), dataset.d_model()));
    lines.push_back(
        fmt::format("  tokens       {} in {} chunks", dataset.tokens(), dataset.chunks().size()));
    lines.push_back(fmt::format("  stored as    {}, {} uncompressed", name_of(dataset.dtype()),
                                bytes_text(dataset.tokens() * dataset.layers() * 2 *
                                           dataset.d_model() * size_of(dataset.dtype()))));
    lines.push_back(fmt::format("  statistics   {}", dataset.stats().empty()
                                                         ? "none (norm_stats.json)"
                                                         : "mean and std of every layer"));
    lines.push_back(fmt::format("  fingerprint  {}{}", dataset.fingerprint(),
                                dataset.has_checksums() ? "" : " (no checksums in the chunks)"));
    const Json metadata = parse_json_object(dataset.metadata(), folder + "/metadata.json");
    for (const auto& [key, value] : metadata.items())
        if (key != "num_layers" && key != "d_model" && key != "dtype" && key != "total_tokens" &&
            key != "checksums")
            lines.push_back(fmt::format(
                "  {:<12} {}", key,
                value.is_string() ? value.get<std::string>()
                                  : value.dump(-1, ' ', false, Json::error_handler_t::replace)));
    Index rows = 0;
    for (const ChunkInfo& chunk : dataset.chunks()) {
        rows += chunk.rows;
        lines.push_back(fmt::format("  {}  {} rows, {}", file_name(chunk.path), chunk.rows,
                                    bytes_text(file_bytes(chunk.path))));
    }
    if (rows != dataset.tokens())
        out.problems.push_back(
            fmt::format("{}/index.bin: its chunks have {} rows, metadata.json says total_tokens = "
                        "{}",
                        folder, rows, dataset.tokens()));
    all.together([&] {
        if (all.rank() == 0)
            for (const std::string& name : strays(dataset))
                lines.push_back(
                    fmt::format("warning: {}/{}: not listed in index.bin", folder, name));
    });
    if (!verify) return out;
    if (dataset.stats().empty())
        out.problems.push_back(
            fmt::format("{}/norm_stats.json: missing, or without a layer of the data set", folder));
    for (std::size_t chunk = 0; chunk < dataset.chunks().size(); ++chunk) {
        const std::string& path = dataset.chunks()[chunk].path;
        if (std::any_of(out.problems.begin(), out.problems.end(),
                        [&](const std::string& problem) { return problem.starts_with(path); }))
            continue;
        try {
            verify_chunk(dataset, chunk, all, out);
        } catch (const UserError& e) {  // on every rank alike: the next chunk may be whole
            out.problems.emplace_back(e.what());
        }
    }
    return out;
}

Inspection inspect_chunk(const std::string& path, bool verify, const Communicator& all) {
    const H5File file = H5File::open(path, &all);
    const std::vector<Index> ids = layer_ids_of(file);
    if (ids.empty()) user_error("{}: holds no group layer_<number>", path);

    Inspection out;
    std::vector<H5Dataset> datasets;
    for (const Index id : ids)
        for (const char* part : {"inputs", "targets"})
            datasets.push_back(file.dataset(fmt::format("layer_{}/{}", id, part)));
    const H5Dataset& first = datasets.front();
    for (std::size_t i = 0; i < datasets.size(); ++i)
        if (datasets[i].rows() != first.rows() || datasets[i].cols() != first.cols() ||
            datasets[i].type() != first.type())
            out.problems.push_back(fmt::format(
                "{}: layer_{} {} is [{}, {}], layer_{} inputs is [{}, {}]: all must be alike", path,
                ids[i / 2], i % 2 == 0 ? "inputs" : "targets", datasets[i].rows(),
                datasets[i].cols(), ids[0], first.rows(), first.cols()));
    DType type = DType::float32;
    if (first.type() == H5Type::float16) type = DType::float16;
    if (first.type() == H5Type::uint16) type = DType::bfloat16;
    if (type == DType::float32 && first.type() != H5Type::float32)
        out.problems.push_back(fmt::format(
            "{}: stored in a type that is none of float32, float16 and uint16 (bfloat16 bits)",
            path));
    out.lines.push_back(fmt::format("{}: chunk of activations", path));
    out.lines.push_back(
        fmt::format("  layers     {} ({}), d_model {}", ids.size(), join_ids(ids), first.cols()));
    out.lines.push_back(fmt::format("  rows       {}", first.rows()));
    out.lines.push_back(
        fmt::format("  stored as  {}, file of {}", name_of(type), bytes_text(file_bytes(path))));
    if (!verify || !out.problems.empty()) return out;

    ChunkSeen seen(static_cast<Index>(ids.size()));
    const Index row_bytes = first.cols() * size_of(type);
    const Index piece =
        std::max<Index>(1, staging_bytes / std::max<Index>(1, row_bytes)) * all.size();
    std::vector<std::byte> rows;
    for (std::size_t i = 0; i < datasets.size(); ++i)
        for (Index begin = 0; begin < first.rows(); begin += piece) {
            Shard own = shard_of(std::min(piece, first.rows() - begin), all.rank(), all.size());
            own = {own.begin + begin, own.end + begin};
            rows.resize(static_cast<std::size_t>(own.size() * row_bytes));
            datasets[i].read(own, rows.data());
            for (Index row = own.begin; row < own.end; ++row)
                seen.look(i, type, rows.data() + (row - own.begin) * row_bytes, first.cols(), row);
        }
    seen.merge(all);
    std::vector<std::optional<std::uint64_t>> checksums;
    for (const H5Dataset& array : datasets) checksums.push_back(read_checksum(array));
    seen.report(path, type, ids, checksums, !checksums.front().has_value(), out);
    return out;
}

}  // namespace clt
