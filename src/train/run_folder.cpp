#include "train/run_folder.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "clt/base/log.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

// Steps of the checkpoints in a folder, readable or not, newest first.
std::vector<Index> steps_in(const std::string& checkpoints) {
    std::vector<Index> steps;
    std::error_code code;
    for (fs::directory_iterator entry(checkpoints, code), end; !code && entry != end;
         entry.increment(code))
        if (const auto name = CheckpointName::parse(entry->path().filename().string()))
            steps.push_back(name->step);
    if (code) user_error("{}: the folder cannot be read: {}", checkpoints, code.message());
    std::sort(steps.rbegin(), steps.rend());
    return steps;
}

bool has_logged(const RunFolder& folder) {
    std::error_code code;
    const auto bytes = fs::file_size(folder.metrics_file(), code);
    return !code && bytes > 0;
}

// A run exists as soon as it has logged a step; a folder with anything else in it is fine.
bool holds_run(const RunFolder& folder) {
    return has_logged(folder) || !steps_in(folder.checkpoints).empty();
}

// One of several checkpoints that cannot be read is passed over; when none can, the run is not
// thrown away for that.
void refuse_to_start_over(const RunFolder& folder, const Communicator& all) {
    all.together([&] {
        if (all.rank() != 0) return;
        const std::vector<Index> steps = steps_in(folder.checkpoints);
        if (!steps.empty())
            user_error(
                "none of the checkpoints in {} (step {}) can be used, as said above: expected a "
                "whole one; move them away to start anew",
                folder.checkpoints, fmt::join(steps, ", "));
    });
    log_info("no checkpoint in {} yet: the run starts anew", folder.checkpoints);
}

// What the shapes of learning rate and sparsity follow when [schedule] changed.
std::string new_shape(const std::vector<FieldChange>& changes, const TrainJob& job, Index step) {
    const bool changed = std::any_of(changes.begin(), changes.end(), [](const FieldChange& change) {
        return change.key == "schedule.steps" || change.key == "schedule.horizon";
    });
    if (!changed) return "";
    return fmt::format(
        "; from step {} on, learning rate and sparsity have the shape of {} steps ({})", step + 1,
        job.schedule.total(),
        job.schedule.horizon > 0 ? "schedule.horizon" : "schedule.horizon would pin it");
}

void judge_changes(const RunFolder& folder, const TrainJob& job, const TrainOptions& options) {
    const std::vector<FieldChange> changes =
        options.differences(folder.start->state.job, options.resolved_job);
    std::vector<std::string> refused;
    std::vector<std::string> followed;
    for (const FieldChange& change : changes)
        (change.role == Role::free ? followed : refused).push_back(change.text());
    const Index done = folder.start->state.step;
    if (!refused.empty())
        user_error(
            "cannot resume the run in {}: the job now differs from it in {}; undo the change or "
            "start in another [job] output (--fork starts it from a checkpoint of this run)",
            folder.path, fmt::join(refused, ", "));
    if (job.schedule.steps < done)
        user_error(
            "schedule.steps = {}, but the run in {} has done {}: expected at least that; "
            "--resume-step goes back to an earlier checkpoint",
            job.schedule.steps, folder.path, done);
    if (job.schedule.steps == done)
        log_info("the run in {} is complete: {} steps are done", folder.path, done);
    else if (!followed.empty())
        log_info("the run in {} goes on with {}{}", folder.path, fmt::join(followed, ", "),
                 new_shape(changes, job, done));
}

CheckpointHeader checkpoint_of_step(const RunFolder& folder, Index step, const Communicator& all) {
    std::string path;
    all.together([&] {
        if (all.rank() != 0) return;
        const std::vector<Index> steps = steps_in(folder.checkpoints);
        if (std::find(steps.begin(), steps.end(), step) == steps.end())
            user_error("--resume-step {}: no such checkpoint in {}, which has {}", step,
                       folder.checkpoints,
                       steps.empty() ? "none" : fmt::format("{}", fmt::join(steps, ", ")));
        path = folder.checkpoints + "/" + CheckpointName{step}.text();
    });
    return read_checkpoint_header(all.broadcast(path), all);
}

// A checkpoint's file, or the newest of a run's folder or of a folder of checkpoints.
CheckpointHeader checkpoint_to_fork(const std::string& given, const Communicator& all) {
    std::string path = given;
    bool is_folder = false;
    all.together([&] {
        if (all.rank() != 0) return;
        std::error_code code;
        if (fs::is_directory(path + "/checkpoints", code)) path += "/checkpoints";
        is_folder = fs::is_directory(path, code);
    });
    path = all.broadcast(path);
    if (!all.broadcast(is_folder)) return read_checkpoint_header(path, all);
    FoundCheckpoint found = find_newest_checkpoint(path, all);
    if (!found.newest) user_error("--fork {}: no whole checkpoint in {}", given, path);
    return *std::move(found.newest);
}

// Everything else may be another in a fork.
void refuse_other_model(const CheckpointHeader& source, const TrainJob& job, const Shape& shape) {
    std::vector<std::string> differences;
    const auto compare = [&](const char* what, const auto& now, const auto& was) {
        if (!(now == was)) differences.push_back(fmt::format("{} ({}, was {})", what, now, was));
    };
    compare("model.features", shape.features, source.shape.features);
    compare("the data's layers", shape.layers, source.shape.layers);
    compare("the data's d_model", shape.d_model, source.shape.d_model);
    if ((job.model.activation == "jumprelu") !=
        (source.model.activation == "jumprelu"))  // thresholds
        compare("model.activation", job.model.activation, source.model.activation);
    if (!differences.empty())
        user_error("--fork {}: its weights do not fit this job, which differs in {}", source.path,
                   fmt::join(differences, ", "));
}

void rename_into(const std::string& file, const std::string& folder) {
    std::error_code code;
    fs::rename(file, fs::path(folder) / fs::path(file).filename(), code);
    if (code) user_error("{}: cannot be moved to {}: {}", file, folder, code.message());
}

// What tells of steps after the one the run goes on from; when it starts anew, of any step. The
// newest checkpoint first, so that what is left when this is cut off still is one line of steps.
void set_aside_superseded(const RunFolder& folder) {
    const bool resumed = folder.start && !folder.fork;
    const Index done = resumed ? folder.start->state.step : -1;
    std::vector<Index> newer = steps_in(folder.checkpoints);
    std::erase_if(newer, [&](Index step) { return step <= done; });
    if (newer.empty() && (resumed || !has_logged(folder))) return;
    std::string aside;
    std::error_code code;
    for (Index k = 1; aside.empty() || path_exists(aside); ++k)
        aside = fmt::format("{}/superseded-{}", folder.checkpoints, k);
    fs::create_directory(aside, code);
    if (code) user_error("{}: cannot be made: {}", aside, code.message());
    if (has_logged(folder)) write_file(aside + "/metrics.jsonl", read_file(folder.metrics_file()));
    if (path_exists(folder.results_file())) rename_into(folder.results_file(), aside);
    for (const Index step : newer)
        rename_into(folder.checkpoints + "/" + CheckpointName{step}.text(), aside);
    log_info("what {} had beyond step {} is now in {}{}{}", folder.path, std::max<Index>(done, 0),
             aside, newer.empty() ? "" : ": the checkpoints of step ", fmt::join(newer, ", "));
}

}  // namespace

RunFolder open_run_folder(const TrainJob& job, const Shape& shape, const TrainOptions& options,
                          const Communicator& all) {
    RunFolder folder;
    folder.path = job.job.output;
    folder.checkpoints = folder.path + "/checkpoints";
    std::optional<CheckpointHeader> source;
    if (!options.fork.empty()) {
        source = checkpoint_to_fork(options.fork, all);
        refuse_other_model(*source, job, shape);
    }
    bool old_run = false;
    all.together([&] {
        if (all.rank() != 0) return;
        make_writable_folder(folder.path);
    });
    folder.lock.emplace(folder.path, all);
    all.together([&] {
        if (all.rank() != 0) return;
        make_writable_folder(folder.checkpoints);
        old_run = holds_run(folder);
    });
    old_run = all.broadcast(old_run);
    if (old_run && !options.resume)
        user_error(
            "[job] output = {} already holds a run: pass --resume to continue it, or choose "
            "another folder",
            folder.path);
    if (old_run) {
        folder.start = options.resume_step ? checkpoint_of_step(folder, *options.resume_step, all)
                                           : find_newest_checkpoint(folder.checkpoints, all).newest;
        if (folder.start) {
            judge_changes(folder, job, options);
            return folder;
        }
        refuse_to_start_over(folder, all);
    } else if (options.resume_step) {
        user_error("--resume-step {}: [job] output = {} holds no run", *options.resume_step,
                   folder.path);
    }
    folder.fork = source.has_value();
    folder.start = std::move(source);
    return folder;
}

void take_over(const RunFolder& folder, const TrainJob& job, const TrainOptions& options) {
    set_aside_superseded(folder);
    // Of an earlier end: a reader must not take it for this run's.
    if (folder.fork || !folder.start || folder.start->state.step < job.schedule.steps) {
        std::error_code code;
        fs::remove(folder.results_file(), code);
        if (code) user_error("{}: cannot be removed: {}", folder.results_file(), code.message());
    }
    write_file(folder.path + "/job.resolved.toml", options.resolved_job);
}

}  // namespace clt
