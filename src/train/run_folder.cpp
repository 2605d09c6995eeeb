#include "train/run_folder.hpp"

#include <fmt/ranges.h>

#include <filesystem>

#include "clt/base/log.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

// Rank 0. A run exists as soon as it has logged a step; a folder with anything else in it is fine.
bool holds_run(const RunFolder& folder) {
    if (fs::exists(folder.metrics_file()) && fs::file_size(folder.metrics_file()) > 0) return true;
    for (const auto& entry : fs::directory_iterator(folder.checkpoints))
        if (entry.path().extension() == ".h5") return true;
    return false;
}

void judge_changes(const RunFolder& folder, const TrainOptions& options) {
    std::vector<std::string> refused;
    std::vector<std::string> followed;
    for (const FieldChange& change :
         options.differences(folder.resume_from->state.job, options.resolved_job))
        (change.role == Role::free ? followed : refused).push_back(change.text());
    if (!refused.empty())
        user_error(
            "cannot resume the run in {}: the job now differs from it in {}; undo the change or "
            "start in another [job] output",
            folder.path, fmt::join(refused, ", "));
    if (!followed.empty())
        log_info("the run in {} goes on with {}", folder.path, fmt::join(followed, ", "));
}

}  // namespace

RunFolder open_run_folder(const std::string& path, const TrainOptions& options,
                          const Communicator& all) {
    RunFolder folder;
    folder.path = path;
    folder.checkpoints = path + "/checkpoints";
    bool old_run = false;
    all.together([&] {
        if (all.rank() != 0) return;
        make_writable_folder(path);
        make_writable_folder(folder.checkpoints);
        old_run = holds_run(folder);
    });
    old_run = all.broadcast(old_run);
    if (old_run && !options.resume)
        user_error(
            "[job] output = {} already holds a run: pass --resume to continue it, or choose "
            "another folder",
            path);
    if (old_run) {
        folder.resume_from = find_newest_checkpoint(folder.checkpoints, all);
        if (folder.resume_from)
            judge_changes(folder, options);
        else
            log_info("no whole checkpoint in {}: the run starts anew", folder.checkpoints);
    }
    all.together([&] {
        if (all.rank() == 0) write_file(path + "/job.resolved.toml", options.resolved_job);
    });
    return folder;
}

}  // namespace clt
