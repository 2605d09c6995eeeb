#include "train/run.hpp"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/log.hpp"
#include "clt/base/stop.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/base/version.hpp"
#include "clt/io/file.hpp"
#include "clt/train/metrics.hpp"
#include "clt/train/optimizer.hpp"
#include "clt/train/run_state.hpp"
#include "train/schedule.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

bool due(Index step, Index interval) {
    return interval > 0 && step % interval == 0;
}

[[noreturn]] void end_broken(Index step, const std::string& parameter) {
    user_error(
        "step {}: its update left a number that is not finite: {}; that cannot be undone, so the "
        "run ends and its checkpoints stay as they are; lower [optimizer] learning_rate",
        step, parameter);
}

class Run {
  public:
    Run(const TrainJob& job, const TrainOptions& options, const RunFolder& folder,
        RunSources sources, Backend& backend, const ProcessGrid& grid);
    int execute();

  private:
    void load_start();
    StepResult advance();
    void count_time(double seconds);
    void react_to_not_finite(const StepResult& result);
    void require_finite_parameters();
    std::optional<Evaluation> evaluate();
    TrainingRecord describe(const StepResult& result);
    void publish(TrainingRecord record);
    void save(const std::optional<Evaluation>& evaluation);
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
    CheckpointSnapshot snapshot_;
    std::unique_ptr<JsonLines> metrics_;  // rank 0

    RunState state_;
    HostBatch batch_;  // of the last step
    Stopwatch leg_;    // since this process began; state_.seconds holds the legs before
    Index leg_steps_ = 0;
    double leg_step_s_ = 0;

    // Since the last record.
    Index interval_steps_ = 0;
    double interval_s_ = 0;
    double interval_wait_s_ = 0;
    Index interval_retries_ = 0;
};

Run::Run(const TrainJob& job, const TrainOptions& options, const RunFolder& folder,
         RunSources sources, Backend& backend, const ProcessGrid& grid)
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
            job.data.batch_tokens) {
    if (folder.start) load_start();
    all_.together([&] {
        if (!leads()) return;
        take_over(folder, job, options);
        metrics_ = std::make_unique<JsonLines>(folder.metrics_file(), state_.metrics_bytes);
    });
    log_info(
        "training {} parameters (L {}, d {}, F {}, {}) on {} rank{}: {} data x {} feature, {} "
        "tokens a step, {} backend",
        shape_.parameters(), shape_.layers, shape_.d_model, shape_.features, job.model.activation,
        all_.size(), all_.size() == 1 ? "" : "s", grid.data_parts(), grid.feature_parts(),
        job.data.batch_tokens, backend.name());
}

// Parameters and state of the checkpoint that the run starts from.
void Run::load_start() {
    const CheckpointInfo& start = *folder_.start;
    const bool moments = !folder_.fork || !options_.fresh_optimizer;
    const CheckpointState saved =
        read_checkpoint(start.path, backend_, grid_, params_, step_.silence(), moments);
    const RunState old = parse_run_state(saved.extra, start.path);
    if (folder_.fork) {
        state_.updates_before = moments ? old.updates_before + saved.step : 0;
        state_.fork = {fs::absolute(start.path).lexically_normal(), saved.step,
                       fingerprint_of(saved.extra + saved.cursor + saved.job)};
        log_info("a new run from step {} of {}{}", saved.step, start.path,
                 moments ? "" : ", with a fresh optimizer");
        return;
    }
    state_ = old;
    state_.step = saved.step;
    sources_.training->seek(saved.cursor);
    // It may have been superseded by a better one before the run went back behind that.
    const std::string best = fmt::format("{}/step_{}.h5", folder_.checkpoints, state_.best_step);
    if (!all_.broadcast(fs::exists(best))) state_.best_step = 0;
    log_info("resuming at step {} from {}", state_.step, start.path);
}

int Run::execute() {
    // A fork stands alone from its first moment: --resume finds all of it in its own folder.
    if (folder_.fork) save(std::nullopt);
    std::optional<Evaluation> evaluation;
    const Index steps = job_.schedule.steps;
    while (state_.step < steps) {
        const StepResult result = advance();
        const bool last = state_.step == steps;
        const bool checkpoint = last || due(state_.step, job_.checkpoint.interval);
        const bool judge = last || due(state_.step, job_.evaluation.interval) ||
                           (checkpoint && job_.checkpoint.keep_best);
        evaluation.reset();
        if (judge || state_.step == 1 || !result.finite || due(state_.step, job_.log.interval)) {
            TrainingRecord record = describe(result);
            if (judge && !result.parameters_broken) record.evaluation = evaluation = evaluate();
            publish(record);
        }
        react_to_not_finite(result);

        const bool stop = all_.stop_requested_anywhere() && !last;
        if (checkpoint || stop) save(checkpoint ? evaluation : std::nullopt);
        if (stop) {
            log_info("stopped by a signal after step {}; --resume goes on from here", state_.step);
            return exit_interrupted;
        }
    }
    if (!evaluation) evaluation = evaluate();  // a resume of a complete run
    if (!evaluation && all_.stop_requested_anywhere()) {
        log_info("stopped by a signal before the last evaluation; --resume goes on from here");
        return exit_interrupted;
    }
    write_results(evaluation);
    return 0;
}

// The next batch through the step.
StepResult Run::advance() {
    const Stopwatch watch;
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
    if (job_.run.on_nonfinite == "stop")
        user_error(
            "{}; the run ends and its checkpoints stay as they are; lower [optimizer] "
            "learning_rate, check the data with clt inspect --verify, or set [run] on_nonfinite = "
            "\"skip\"",
            what);
    log_warning("{}; nothing was updated", what);
    if (++state_.skipped_in_a_row >= job_.run.nonfinite_limit)
        user_error(
            "{}; that makes {} steps in a row ([run] nonfinite_limit): the run ends and its "
            "checkpoints stay as they are",
            what, state_.skipped_in_a_row);
}

// Before parameters are judged or kept: a step returns before its update is known to be sound.
void Run::require_finite_parameters() {
    if (const std::string broken = step_.not_finite(); !broken.empty())
        end_broken(state_.step, broken);
}

// Nothing when there are no held-out tokens.
std::optional<Evaluation> Run::evaluate() {
    require_finite_parameters();
    const std::unique_ptr<BatchSource> source = sources_.open_evaluation();
    if (source == nullptr) return std::nullopt;
    std::optional<Evaluation> evaluation = evaluate_pass(step_, *source, shape_, all_);
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
    for (auto& [name, stage_s] : record.stages_s) stage_s /= static_cast<double>(interval_steps_);
    interval_steps_ = interval_retries_ = 0;
    interval_s_ = interval_wait_s_ = 0;
    return record;
}

void Run::publish(TrainingRecord record) {
    if (leads()) {
        record.records_lost = metrics_->lost();
        metrics_->write(to_json(record));
        state_.metrics_bytes = metrics_->bytes();
    }
    const double left_s = leg_step_s_ / static_cast<double>(leg_steps_) *
                          static_cast<double>(job_.schedule.steps - state_.step);
    log_live(live_line(record, job_.schedule.steps, left_s));
}

// evaluation: of this very step, when the checkpoint is to compete for the best.
void Run::save(const std::optional<Evaluation>& evaluation) {
    require_finite_parameters();
    if (leads()) metrics_->sync();
    if (evaluation && job_.checkpoint.keep_best && evaluation->finite() &&
        (state_.best_step == 0 || evaluation->nmse < state_.best_nmse)) {
        state_.best_step = state_.step;
        state_.best_nmse = evaluation->nmse;
    }
    RunState saved = state_;
    saved.seconds = seconds();
    saved.normalization = job_.data.normalization;
    CheckpointState checkpoint;
    checkpoint.step = state_.step;
    checkpoint.cursor = sources_.training->cursor();
    checkpoint.job = options_.resolved_job;
    checkpoint.extra = to_json(saved);
    snapshot_.take(backend_, grid_, params_, step_.silence(), job_.model, checkpoint);
    write_checkpoint(folder_.checkpoints, snapshot_, all_);
    all_.together([&] {
        if (leads())
            prune_checkpoints(
                folder_.checkpoints, job_.checkpoint.keep,
                state_.best_step == 0 ? "" : fmt::format("step_{}.h5", state_.best_step));
    });
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
        results["checkpoint"] = fmt::format("checkpoints/step_{}.h5", state_.step);
        if (state_.best_step > 0)
            results["best_checkpoint"] = fmt::format("checkpoints/step_{}.h5", state_.best_step);
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
                 RunSources sources, Backend& backend, const ProcessGrid& grid) {
    Run run(job, options, folder, std::move(sources), backend, grid);
    return run.execute();
}

}  // namespace clt
