#include "train/run.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/disk_full.hpp"
#include "clt/base/log.hpp"
#include "clt/base/progress.hpp"
#include "clt/base/stop.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/base/version.hpp"
#include "clt/io/file.hpp"
#include "clt/train/metrics.hpp"
#include "clt/train/optimizer.hpp"
#include "train/checkpoint_saver.hpp"
#include "train/run_state.hpp"
#include "train/schedule.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

constexpr Index no_step = -1;

bool due(Index step, Index interval) {
    return interval > 0 && step % interval == 0;
}

// A number is not finite; what happens then is for [run] on_nonfinite to say.
class NotFinite : public UserError {
  public:
    using UserError::UserError;
};

[[noreturn]] void end_broken(Index step, const std::string& parameter) {
    throw NotFinite(fmt::format(
        "step {}: its update left a number that is not finite: {}; that cannot be undone", step,
        parameter));
}

class Run {
  public:
    Run(const TrainJob& job, const TrainOptions& options, const RunFolder& folder,
        RunSources sources, Backend& backend, const ProcessGrid& grid, Workers& workers);
    int execute();

  private:
    void fork_from(const CheckpointHeader& start);
    void go_on_from(const CheckpointHeader& checkpoint);
    bool roll_back(const NotFinite& why);
    int train();
    bool ends_at(Index step) const { return step >= job_.schedule.steps; }
    bool saves_at(Index step) const { return ends_at(step) || due(step, job_.checkpoint.interval); }
    bool judges_at(Index step) const {
        return ends_at(step) || due(step, job_.evaluation.interval) ||
               (saves_at(step) && job_.checkpoint.keep_best);
    }
    StepResult advance();
    void count_time(double seconds);
    void react_to_not_finite(const StepResult& result);
    void require_finite_parameters();
    std::optional<Evaluation> evaluate();
    TrainingRecord describe(const StepResult& result);
    int stop();
    void conclude_step(const std::optional<Evaluation>& evaluation);
    void note_best(const Evaluation& evaluation);
    void publish(const std::optional<Evaluation>& evaluation);
    std::string best() const;
    void save();
    void settle_save();
    void save_last();
    void keep_state();
    void write_results(const std::optional<Evaluation>& evaluation);
    bool leads() const { return all_.rank() == 0; }
    double seconds() const { return state_.seconds + leg_.seconds(); }

    const TrainJob& job_;
    const TrainOptions& options_;
    const RunFolder& folder_;
    RunSources sources_;
    Backend& backend_;
    const ProcessGrid& grid_;
    const Communicator& all_;
    Shape shape_;
    Params params_;
    Step step_;
    CheckpointSaver saver_;
    std::unique_ptr<JsonLines> metrics_;  // rank 0

    RunState state_;
    Index saved_step_ = no_step;    // of the last save, or of the checkpoint resumed from
    std::string evaluation_start_;  // cursor of the held-out tokens' beginning
    HostBatch batch_;               // of the last step
    TrainingRecord record_;         // of the last step that has one, for the live line
    Stopwatch leg_;  // since this process began; state_.seconds holds the legs before
    Index leg_steps_ = 0;
    double leg_step_s_ = 0;

    // Since the last record.
    Index interval_steps_ = 0;
    double interval_s_ = 0;
    double interval_wait_s_ = 0;
    Index interval_retries_ = 0;
};

Run::Run(const TrainJob& job, const TrainOptions& options, const RunFolder& folder,
         RunSources sources, Backend& backend, const ProcessGrid& grid, Workers& workers)
    : job_(job),
      options_(options),
      folder_(folder),
      sources_(std::move(sources)),
      backend_(backend),
      grid_(grid),
      all_(grid.all()),
      shape_{sources_.training->layers(), sources_.training->d_model(), job.model.features},
      params_(backend, shape_, grid.feature_shard(job.model.features), job.model,
              static_cast<std::uint64_t>(job.job.seed)),
      step_(backend, grid, params_, job.model, job.loss, sources_.training->error_scale(),
            job.data.batch_tokens),
      saver_(job.checkpoint, folder.checkpoints,
             folder.start && !folder.fork ? &*folder.start : nullptr, grid, backend, workers) {
    if (sources_.evaluation) evaluation_start_ = sources_.evaluation->cursor();
    if (folder.start && folder.fork) {
        fork_from(*folder.start);
    } else if (folder.start) {
        go_on_from(*folder.start);
        log_info("resuming at step {} from {}", state_.step, folder.start->path);
    }
    all_.together([&] {
        if (!leads()) return;
        take_over(folder, job, options);
        metrics_ = std::make_unique<JsonLines>(folder.metrics_file(), state_.metrics_bytes,
                                               state_.metrics_fingerprint);
    });
    log_info(
        "training {} parameters (L {}, d {}, F {}, {}) on {} rank{}: {} data x {} feature, {} "
        "tokens a step, {} backend",
        shape_.parameters(), shape_.layers, shape_.d_model, shape_.features, job.model.activation,
        all_.size(), all_.size() == 1 ? "" : "s", grid.data_parts(), grid.feature_parts(),
        job.data.batch_tokens, backend.name());
}

// The parameters of another run's checkpoint; what has been done so far is nothing.
void Run::fork_from(const CheckpointHeader& start) {
    const bool moments = !options_.fresh_optimizer;
    const CheckpointState& saved = start.state;
    read_checkpoint(start, backend_, grid_, params_, step_.silence(), moments);
    const RunState old = parse_run_state(saved.extra, start.path);
    state_.updates_before = moments ? old.updates_before + saved.step : 0;
    state_.fork = {fs::absolute(start.path).lexically_normal(), saved.step,
                   fingerprint_of(saved.extra + saved.cursor + saved.job)};
    log_info("a new run from step {} of {}{}", saved.step, start.path,
             moments ? "" : ", with a fresh optimizer");
}

// Parameters and state of this run's checkpoint, and its place in the data.
void Run::go_on_from(const CheckpointHeader& checkpoint) {
    const CheckpointState& saved = checkpoint.state;
    read_checkpoint(checkpoint, backend_, grid_, params_, step_.silence(), /*moments=*/true);
    state_ = parse_run_state(saved.extra, checkpoint.path);
    state_.step = saved_step_ = saved.step;
    state_.threshold = saved.threshold;
    sources_.training->seek(saved.cursor);
    // It may have been superseded by a better one before the run went back behind that.
    bool there = false;
    all_.together([&] { there = path_exists(folder_.checkpoints + "/" + best()); });
    if (!all_.broadcast(there)) state_.best_step = 0;
}

int Run::execute() {
    // A fork stands alone from its first moment: --resume finds all of it in its own folder.
    if (folder_.fork) save();
    while (true) {
        try {
            return train();
        } catch (const NotFinite& e) {
            publish(std::nullopt);  // the record shows it
            if (roll_back(e)) continue;
            user_error(
                "{}; the run ends and its checkpoints stay as they are; lower [optimizer] "
                "learning_rate, check the data with clt inspect --verify, or see [run] "
                "on_nonfinite",
                e.what());
        } catch (const UserError&) {
            keep_state();
            throw;
        }
    }
}

// False: the run has to end.
bool Run::roll_back(const NotFinite& why) {
    const Index rollbacks = state_.rollbacks + 1;
    if (job_.run.on_nonfinite != "rollback" || rollbacks > job_.run.nonfinite_limit) return false;
    // Whatever uses HDF5 ends first.
    settle_save();
    sources_.training->reorder(rollbacks);
    const FoundCheckpoint found = find_newest_checkpoint(folder_.checkpoints, all_);
    if (!found.newest) return false;
    go_on_from(*found.newest);
    state_.rollbacks = rollbacks;
    sources_.training->reorder(rollbacks);
    all_.together([&] {
        if (leads())
            metrics_ = std::make_unique<JsonLines>(folder_.metrics_file(), state_.metrics_bytes);
    });
    log_warning("{}: back to step {}, with another order of batches (time {} of at most {})",
                why.what(), state_.step, rollbacks, job_.run.nonfinite_limit);
    return true;
}

// A step is saved before it is judged: what goes wrong in judging costs nothing. Its record waits
// in the checkpoint, so a run resumed here judges again and writes the same line.
int Run::train() {
    std::optional<Evaluation> evaluation;
    while (true) {
        if (state_.step > 0) {
            const bool judges = judges_at(state_.step) && sources_.evaluation != nullptr;
            evaluation = judges ? evaluate() : std::nullopt;
            if (judges && !evaluation) return stop();
            conclude_step(evaluation);
        }
        if (ends_at(state_.step)) break;

        const StepResult result = advance();
        if (judges_at(state_.step) || state_.step == 1 || !result.finite ||
            due(state_.step, job_.log.interval)) {
            record_ = describe(result);
            state_.record = to_json(record_);
        }
        react_to_not_finite(result);
        std::array<std::int32_t, 2> anywhere{stop_requested() ? 1 : 0, saver_.has_failed() ? 1 : 0};
        all_.all_reduce_max(std::span<std::int32_t>(anywhere));
        if (anywhere[1] != 0) settle_save();
        if (anywhere[0] != 0 && !ends_at(state_.step)) return stop();
        if (saves_at(state_.step)) {
            save();
            if (!job_.checkpoint.asynchronous) settle_save();
        }
    }
    save_last();
    write_results(evaluation);
    return 0;
}

int Run::stop() {
    save_last();  // its record is not yet in metrics.jsonl but in the checkpoint
    publish(std::nullopt);
    log_info("stopped by a signal after step {}; --resume goes on from here", state_.step);
    return exit_interrupted;
}

// The next batch through the step.
StepResult Run::advance() {
    const Stopwatch watch;
    note_step(state_.step + 1);
    batch_ = sources_.training->next();
    StepResult result;
    try {
        result = step_.train(batch_, step_scalars(job_.optimizer, job_.schedule, job_.loss,
                                                  state_.step, state_.updates_before));
    } catch (const LibraryError& e) {
        throw LibraryError(fmt::format("step {}: {}", state_.step + 1, e.what()));
    }
    ++state_.step;
    state_.tokens += batch_.tokens;
    if (result.finite && job_.model.activation == "batchtopk")
        state_.threshold.add(result.threshold);
    ++leg_steps_;
    ++interval_steps_;
    interval_wait_s_ += batch_.wait_s;
    interval_retries_ += result.selection_retries;
    count_time(watch.seconds());
    return result;
}

void Run::count_time(double seconds) {
    state_.train_s += seconds;
    leg_step_s_ += seconds;
    interval_s_ += seconds;
}

// Goes on or ends the run, as [run] says. All of it is equal on every rank.
void Run::react_to_not_finite(const StepResult& result) {
    if (result.finite) {
        state_.skipped_in_a_row = 0;
        return;
    }
    if (result.parameters_broken) end_broken(state_.step - 1, result.not_finite);
    const std::string what =
        fmt::format("step {}: a number is not finite: {}", state_.step, result.not_finite);
    if (job_.run.on_nonfinite != "skip") throw NotFinite(what);
    log_warning("{}; nothing was updated", what);
    if (++state_.skipped_in_a_row >= job_.run.nonfinite_limit)
        throw NotFinite(fmt::format("{}; that makes {} steps in a row ([run] nonfinite_limit)",
                                    what, state_.skipped_in_a_row));
}

// Before parameters are judged or kept: a step returns before its update is known to be sound.
void Run::require_finite_parameters() {
    if (const std::string broken = step_.not_finite(); !broken.empty())
        end_broken(state_.step, broken);
}

// Nothing when a signal has stopped it.
std::optional<Evaluation> Run::evaluate() {
    require_finite_parameters();
    sources_.evaluation->seek(evaluation_start_);
    std::optional<Evaluation> evaluation = evaluate_pass(step_, *sources_.evaluation, shape_, all_);
    step_.take_stage_seconds();  // they are not the training step's
    return evaluation;
}

// Closes the interval since the last record.
TrainingRecord Run::describe(const StepResult& result) {
    TrainingRecord record;
    // A step may return while its update is still under way: the wait for it is training time.
    const Stopwatch watch;
    record.stages_s = step_.take_stage_seconds();
    count_time(watch.seconds());
    record.step = state_.step;
    record.tokens = state_.tokens;
    record.result = result;
    record.learning_rate =
        learning_rate(job_.schedule, job_.optimizer.learning_rate, state_.step - 1);
    record.sparsity_weight = sparsity_weight(job_.loss, job_.schedule.total(), state_.step - 1);
    record.nmse = batch_nmse(
        result.squared_error,
        batch_target_variance(batch_, sources_.training->error_scale(), shape_.layers, all_),
        batch_.tokens, shape_.d_model);
    record.dead_features = step_.dead_features(job_.log.dead_window);
    record.interval_steps = interval_steps_;
    record.interval_s = interval_s_;
    record.tokens_per_s =
        static_cast<double>(interval_steps_ * job_.data.batch_tokens) / interval_s_;
    record.wait_for_data_s = all_.all_reduce_max(interval_wait_s_);
    record.selection_retries = interval_retries_;
    if (leads()) record.records_lost = metrics_->lost();
    for (auto& [name, stage_s] : record.stages_s) stage_s /= static_cast<double>(interval_steps_);
    interval_steps_ = interval_retries_ = 0;
    interval_s_ = interval_wait_s_ = 0;
    return record;
}

// Of the step just done, or the one that was resumed from.
void Run::conclude_step(const std::optional<Evaluation>& evaluation) {
    if (evaluation && saves_at(state_.step) && job_.checkpoint.keep_best) note_best(*evaluation);
    publish(evaluation);
}

void Run::note_best(const Evaluation& evaluation) {
    if (!evaluation.finite() || (state_.best_step > 0 && evaluation.nmse >= state_.best_nmse))
        return;
    settle_save();
    if (saved_step_ != state_.step) return;
    state_.best_step = state_.step;
    state_.best_nmse = evaluation.nmse;
    saver_.prune(state_.best_step);
}

// The file's name; empty: there is none yet.
std::string Run::best() const {
    return state_.best_step == 0 ? "" : CheckpointName{state_.best_step}.text();
}

void Run::publish(const std::optional<Evaluation>& evaluation) {
    if (state_.record.empty()) return;
    if (leads()) {
        metrics_->write(evaluation ? with_evaluation(state_.record, *evaluation) : state_.record);
        state_.metrics_bytes = metrics_->bytes();
        state_.metrics_fingerprint = metrics_->fingerprint();
    }
    state_.record.clear();
    if (record_.step != state_.step) return;  // of an earlier leg
    record_.evaluation = evaluation;
    const double left_s = leg_step_s_ / static_cast<double>(leg_steps_) *
                          static_cast<double>(job_.schedule.steps - state_.step);
    log_live(live_line(record_, job_.schedule.steps, left_s));
}

void Run::save() {
    require_finite_parameters();
    if (leads()) metrics_->sync();
    RunState saved = state_;
    saved.seconds = seconds();
    CheckpointState checkpoint;
    checkpoint.step = state_.step;
    checkpoint.tokens = state_.tokens;
    checkpoint.data = sources_.data;
    checkpoint.threshold = state_.threshold;
    checkpoint.cursor = sources_.training->cursor();
    checkpoint.job = options_.resolved_job;
    checkpoint.extra = to_json(saved);
    settle_save();
    saver_.save(params_, step_.silence(), job_.model, checkpoint, state_.best_step);
    saved_step_ = state_.step;
}

// A run does not end without its last state.
void Run::save_last() {
    settle_save();
    if (state_.step != saved_step_) save();
    saver_.wait();
}

// Waits for the save under way. What found no room is tried again when the next one is due.
void Run::settle_save() {
    try {
        saver_.wait();
    } catch (const DiskFullError& e) {
        if (job_.checkpoint.on_full == "stop") throw;
        saved_step_ = no_step;
        log_warning("{}; training goes on until the next checkpoint", e.what());
    }
}

// An error on which all ranks agree, in data, judging or logging, leaves the parameters as the last
// step made them.
void Run::keep_state() {
    if (state_.step == 0) return;
    try {
        save_last();
        log_info("the state after step {} is saved; --resume goes on from there", state_.step);
    } catch (const std::exception& e) {
        log_warning("the state after step {} is lost: {}", state_.step, e.what());
    }
}

void Run::write_results(const std::optional<Evaluation>& evaluation) {
    all_.together([&] {
        if (!leads()) return;
        nlohmann::ordered_json results;
        results["kind"] = "train";
        results["steps"] = state_.step;
        results["tokens"] = state_.tokens;
        results["parameters"] = shape_.parameters();
        results["train_tokens_per_s"] =
            state_.train_s > 0 ? static_cast<double>(state_.tokens) / state_.train_s : 0.0;
        results["seconds"] = seconds();
        results["ranks"] = all_.size();
        results["grid"] = {{"data", grid_.data_parts()}, {"feature", grid_.feature_parts()}};
        results["backend"] = backend_.name();
        results["revision"] = revision();
        results["checkpoint"] = "checkpoints/" + CheckpointName{state_.step}.text();
        if (state_.best_step > 0) results["best_checkpoint"] = "checkpoints/" + best();
        if (state_.fork) results["fork"] = nlohmann::ordered_json::parse(to_json(*state_.fork));
        results["evaluation"] = evaluation ? nlohmann::ordered_json::parse(to_json(*evaluation))
                                           : nlohmann::ordered_json();
        write_file(folder_.results_file(), results.dump(2) + "\n");
    });
    if (evaluation) log_info("held-out tokens: {}\n{}", evaluation->tokens, table_of(*evaluation));
    log_info("trained {} steps in {}; results in {}", state_.step, format_duration(seconds()),
             folder_.results_file());
}

}  // namespace

int run_training(const TrainJob& job, const TrainOptions& options, const RunFolder& folder,
                 RunSources sources, Backend& backend, const ProcessGrid& grid, Workers& workers) {
    Run run(job, options, folder, std::move(sources), backend, grid, workers);
    return run.execute();
}

}  // namespace clt
