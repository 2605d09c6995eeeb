#include "clt/analyse/evaluate.hpp"

#include <nlohmann/json.hpp>

#include "clt/base/log.hpp"
#include "clt/base/stop.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/base/version.hpp"
#include "clt/data/sources.hpp"
#include "clt/io/file.hpp"
#include "clt/io/folder_lock.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {
namespace {

// The data set that is judged on.
const std::string& data_path(const EvaluateJob& job) {
    return job.data.evaluation_path.empty() || job.evaluate.rows == "all"
               ? job.data.path
               : job.data.evaluation_path;
}

CheckpointHeader find_checkpoint(const std::string& path, const Communicator& all) {
    bool folder = false;
    all.together([&] { folder = is_folder(path); });
    if (!all.broadcast(folder)) return read_checkpoint_header(path, all);
    FoundCheckpoint found = find_newest_checkpoint(path, all);
    if (!found.newest)
        user_error("[evaluate] checkpoint = {}: no whole checkpoint in this folder", path);
    return *std::move(found.newest);
}

// The transcoder only knows activations scaled as it was trained. Format 1 does not hold the
// numbers: those of the data set at hand stand in for them.
Normalization normalization_of(const EvaluateJob& job, const CheckpointHeader& checkpoint,
                               const Communicator& all) {
    const TrainingData& trained = checkpoint.state.data;
    if (checkpoint.format_version > 1 || trained.normalization.method != "mean_std")
        return trained.normalization;
    const std::string& path = data_path(job);
    const ActivationDataset dataset(path, all);
    if (all.rank() == 0 && dataset.format_1_fingerprint() != trained.fingerprint)
        log_warning(
            "{}: a checkpoint of format 1, without the statistics that it was trained with; those "
            "of {} are used, which is another data set: the figures are not those of the model as "
            "trained",
            checkpoint.path, path);
    return normalization_of(dataset, trained.normalization.method);
}

void write_results(const EvaluateJob& job, const CheckpointHeader& checkpoint,
                   const Evaluation& evaluation, double seconds, const ProcessGrid& grid,
                   const Backend& backend) {
    nlohmann::ordered_json results = nlohmann::ordered_json::parse(to_json(evaluation));
    results["kind"] = "evaluate";
    results["checkpoint"] = checkpoint.path;
    results["step"] = checkpoint.state.step;
    results["data"] = data_path(job);
    results["normalization"] = checkpoint.state.data.normalization.method;
    results["rows"] = job.evaluate.rows;
    results["parameters"] = checkpoint.shape.parameters();
    results["seconds"] = seconds;
    results["ranks"] = grid.all().size();
    results["grid"] = {{"data", grid.data_parts()}, {"feature", grid.feature_parts()}};
    results["backend"] = backend.name();
    results["revision"] = revision();
    // Paths need not be UTF-8, JSON must.
    constexpr auto replace = nlohmann::ordered_json::error_handler_t::replace;
    write_file(job.job.output + "/results.json", results.dump(2, ' ', false, replace) + "\n");
}

}  // namespace

Evaluation evaluate(const EvaluateJob& job, Backend& backend, const Communicator& world,
                    Workers& workers) {
    const Stopwatch watch;
    const ProcessGrid grid(world, job.grid);
    const Communicator& all = grid.all();
    const CheckpointHeader checkpoint = find_checkpoint(job.evaluate.checkpoint, all);
    std::unique_ptr<BatchSource> source = make_evaluation_source(
        job.data, normalization_of(job, checkpoint, all), job.evaluate.tokens,
        /*whole=*/job.evaluate.rows == "all", grid, backend, workers);
    if (source == nullptr)
        user_error(
            "[evaluate] rows = \"heldout\", but nothing is held out: set [data] holdout_fraction "
            "as in training or evaluation_path, or rows = \"all\"");
    check_k(checkpoint.model, checkpoint.shape, job.data.batch_tokens);
    all.stop_point("the data was opened");
    all.together([&] {
        if (all.rank() == 0) make_writable_folder(job.job.output);
    });
    const FolderLock lock(job.job.output, all);

    Params params(backend, checkpoint.shape, grid.feature_shard(checkpoint.shape.features),
                  checkpoint.model, /*seed=*/0);
    read_checkpoint(checkpoint, backend, grid, params, Span<Index>(), /*moments=*/false);
    if (const std::string broken = params.find_not_finite(all); !broken.empty())
        user_error(
            "{}: holds a number that is not finite: {}; a feature with one is never active, so "
            "any figure of it would be wrong: evaluate an older checkpoint",
            checkpoint.path, broken);
    const LossConfig loss;
    Step step(backend, grid, params, checkpoint.model, loss, source->error_scale(),
              job.data.batch_tokens);
    const std::optional<Evaluation> evaluation =
        evaluate_pass(step, *source, checkpoint.shape, all);
    source.reset();
    if (!evaluation) stopped_while("a checkpoint was judged");
    if (!evaluation->not_finite.empty())
        user_error("[data] path = {}: a number is not finite: {}; clt inspect --verify says where",
                   job.data.path, evaluation->not_finite);

    all.together([&] {
        if (all.rank() != 0) return;
        write_results(job, checkpoint, *evaluation, watch.seconds(), grid, backend);
        try {
            print_answer(fmt::format("{} tokens, checkpoint {}\n{}", evaluation->tokens,
                                     checkpoint.path, table_of(*evaluation)));
        } catch (const UserError& e) {
            log_warning("{}; the results are in {}/results.json", e.what(), job.job.output);
        }
    });
    return *evaluation;
}

}  // namespace clt
