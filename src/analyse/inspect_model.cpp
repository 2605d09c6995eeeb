// Checkpoints, run folders and safetensors.
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "analyse/inspect_parts.hpp"
#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "clt/io/safetensors.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

// A text of several lines, set in by four blanks.
void add_indented(const std::string& title, const std::string& text,
                  std::vector<std::string>& out) {
    if (text.empty()) return;
    out.push_back("  " + title);
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) out.push_back("    " + line);
}

void describe_model(const CheckpointHeader& info, std::vector<std::string>& out) {
    const Shape& shape = info.shape;
    out.push_back(
        fmt::format("  model     {} layers, d_model {}, {} features a layer: {} "
                    "parameters",
                    shape.layers, shape.d_model, shape.features, shape.parameters()));
    const bool top = info.model.activation == "batchtopk" || info.model.activation == "topk";
    out.push_back(fmt::format(
        "  features  {}{}", info.model.activation,
        top ? fmt::format(", k {:g}, ranked {}", info.model.k, info.model.ranking) : ""));
    out.push_back(fmt::format("  step      {}, {} tokens, written by clt {} (format {})",
                              info.state.step, info.state.tokens, info.revision,
                              info.format_version));
    const TrainingData& data = info.state.data;
    const auto known = [](const std::string& text) { return text.empty() ? "unknown" : text; };
    out.push_back(fmt::format(
        "  data      fingerprint {}, language model {}, {} -> {}, layers {}",
        known(data.fingerprint), known(data.language_model), known(data.input_tap),
        known(data.target_tap),
        data.layer_ids.empty() ? "unknown" : fmt::format("{}", fmt::join(data.layer_ids, " "))));
    out.push_back(fmt::format("  scaled    {}{}", data.normalization.method,
                              data.normalization.method != "mean_std" ? ""
                              : data.normalization.stats.empty()
                                  ? ", statistics not in the file (format 1)"
                                  : ", statistics in the file"));
    if (info.model.activation == "batchtopk" && info.format_version > 1)
        out.push_back(fmt::format("  threshold {:.6g} in the last step, {:.6g} on average",
                                  info.state.threshold.last, info.state.threshold.running));
}

// Each kind of array in a line: "moment1  13 arrays, 1.2 MB".
void describe_arrays(const CheckpointHeader& info, std::vector<std::string>& out) {
    std::vector<std::pair<std::string, std::pair<Index, Index>>> groups;
    Index blocks = 0;
    for (const StoredArray& array : info.arrays) {
        const std::string group = array.name.substr(0, array.name.find('/'));
        if (groups.empty() || groups.back().first != group) groups.push_back({group, {0, 0}});
        ++groups.back().second.first;
        groups.back().second.second += array.bytes();
        blocks += static_cast<Index>(array.block_sums.size());
    }
    std::vector<std::string> parts;
    for (const auto& [group, size] : groups)
        parts.push_back(fmt::format("{} {} ({})", group, size.first, bytes_text(size.second)));
    out.push_back(
        fmt::format("  arrays    {}; checksums of {} blocks", fmt::join(parts, ", "), blocks));
}

// step_<number>.h5 in a folder, by number. Rank 0.
std::vector<std::string> checkpoints_in(const std::string& folder) {
    std::vector<std::string> names = names_in(folder);
    std::erase_if(names, [](const std::string& name) { return !CheckpointName::parse(name); });
    std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
        return CheckpointName::parse(a)->step < CheckpointName::parse(b)->step;
    });
    return names;
}

// Rank 0's list, for all.
std::vector<std::string> broadcast_list(const std::vector<std::string>& list,
                                        const Communicator& all) {
    std::istringstream lines(all.broadcast(fmt::format("{}", fmt::join(list, "\n"))));
    std::vector<std::string> copy;
    for (std::string line; std::getline(lines, line);) copy.push_back(line);
    return copy;
}

}  // namespace

Inspection inspect_checkpoint_file(const std::string& path, bool verify, const Communicator& all) {
    const CheckpointHeader info = read_checkpoint_header(path, all);
    Inspection out;
    out.lines.push_back(fmt::format("{}: checkpoint, {}", path, bytes_text(file_bytes(path))));
    describe_model(info, out.lines);
    describe_arrays(info, out.lines);
    add_indented("position in the data", info.state.cursor, out.lines);
    add_indented("state of the run", info.state.extra, out.lines);
    add_indented("job", info.state.job, out.lines);
    if (verify) out.problems = verify_checkpoint(info, all);
    return out;
}

Inspection inspect_run(const std::string& folder, bool verify, const Communicator& all) {
    const std::string below = folder + "/checkpoints";
    std::string where;
    std::vector<std::string> names;
    all.together([&] {
        if (all.rank() != 0) return;
        where = path_exists(below) ? below : folder;
        names = checkpoints_in(where);
    });
    where = all.broadcast(where);
    names = broadcast_list(names, all);
    Inspection out;
    out.lines.push_back(fmt::format("{}: run of clt train", folder));
    std::optional<CheckpointHeader> newest;
    for (const std::string& name : names) {
        const std::string path = (fs::path(where) / name).string();
        try {
            newest = read_checkpoint_header(path, all);
            out.lines.push_back(fmt::format("  {:<20} step {}, {}", name, newest->state.step,
                                            bytes_text(file_bytes(path))));
            if (verify)
                for (std::string& problem : verify_checkpoint(*newest, all))
                    out.problems.push_back(std::move(problem));
        } catch (const UserError& e) {  // on every rank alike
            out.lines.push_back(fmt::format("  {:<20} not whole: {}", name, e.what()));
            if (verify) out.problems.emplace_back(e.what());
        }
    }
    if (names.empty()) out.lines.emplace_back("  no checkpoint yet");
    if (newest) {
        out.lines.emplace_back("newest whole checkpoint");
        describe_model(*newest, out.lines);
    }
    all.together([&] {
        if (all.rank() != 0 || !path_exists(folder + "/metrics.jsonl")) return;
        const std::string metrics = read_file(folder + "/metrics.jsonl");
        out.lines.push_back(fmt::format("metrics.jsonl: {} records",
                                        std::count(metrics.begin(), metrics.end(), '\n')));
        const std::size_t end = metrics.find_last_not_of('\n');
        if (end == std::string::npos) return;
        const std::size_t begin = metrics.rfind('\n', end) + 1;  // npos + 1 is 0
        out.lines.push_back("  last: " + metrics.substr(begin, end - begin + 1));
    });
    return out;
}

Inspection inspect_safetensors(const std::string& path, bool verify, const Communicator& all) {
    std::optional<SafetensorsFile> file;
    all.together([&] { file.emplace(path); });
    Inspection out;
    Index elements = 0;
    std::size_t width = 6;
    for (const auto& [name, entry] : file->entries()) {
        Index count = 1;
        for (const Index extent : entry.shape) count *= extent;
        elements += count;
        width = std::max(width, name.size());
    }
    out.lines.push_back(fmt::format("{}: safetensors, {} tensors, {} numbers, {}", path,
                                    file->entries().size(), elements,
                                    bytes_text(file_bytes(path))));
    for (const auto& [key, value] : file->metadata())
        out.lines.push_back(fmt::format("  {} = {}", key, value));
    for (const auto& [name, entry] : file->entries())
        out.lines.push_back(fmt::format("  {:<{}}  {:<5} [{}]", name, width, entry.dtype,
                                        fmt::join(entry.shape, ", ")));
    if (!verify) return out;

    // Tensors are dealt over the ranks. Those of other types have no values that could be wrong.
    std::vector<std::string> problems;
    all.together([&] {
        int turn = 0;
        for (const auto& [name, entry] : file->entries()) {
            if (turn++ % all.size() != all.rank()) continue;
            if (entry.dtype != "F32" && entry.dtype != "F16" && entry.dtype != "BF16") continue;
            const std::vector<float> values = file->read(name);
            const auto n = static_cast<Index>(values.size());
            const Index bad = first_not_finite(DType::float32, values.data(), n);
            if (bad < n)
                problems.push_back(fmt::format("{}: tensor \"{}\" is NaN or infinite at element {}",
                                               path, name, bad));
        }
    });
    for (int rank = 0; rank < all.size(); ++rank) {
        const std::string text = all.broadcast(
            rank == all.rank() ? fmt::format("{}", fmt::join(problems, "\n")) : std::string(),
            rank);
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) out.problems.push_back(line);
    }
    return out;
}

}  // namespace clt
