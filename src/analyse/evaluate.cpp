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
#include "clt/train/run_state.hpp"

namespace clt {
namespace {

CheckpointInfo find_checkpoint(const std::string& path, const Communicator& all) {
    bool folder = false;
    all.together([&] { folder = is_folder(path); });
    if (!all.broadcast(folder)) return inspect_checkpoint(path, all);
    std::optional<CheckpointInfo> newest = find_newest_checkpoint(path, all);
    if (!newest) user_error("[evaluate] checkpoint = {}: no whole checkpoint in this folder", path);
    return *std::move(newest);
}

// The transcoder only knows activations scaled as it was trained.
void check_fit(const EvaluateJob& job, const CheckpointInfo& checkpoint,
               const BatchSource& source) {
    if (source.layers() != checkpoint.shape.layers || source.d_model() != checkpoint.shape.d_model)
        user_error(
            "[data] path = {} has {} layers of width {}, but the checkpoint {} was trained on {} "
            "layers of width {}",
            job.data.path, source.layers(), source.d_model(), checkpoint.path,
            checkpoint.shape.layers, checkpoint.shape.d_model);
    const RunState state = parse_run_state(checkpoint.state.extra, checkpoint.path);
    if (state.normalization != job.data.normalization)
        user_error(
            "[data] normalization = \"{}\", but the checkpoint {} was trained with \"{}\": set it "
            "to that",
            job.data.normalization, checkpoint.path, state.normalization);
}

void write_results(const EvaluateJob& job, const CheckpointInfo& checkpoint,
                   const Evaluation& evaluation, double seconds, const ProcessGrid& grid,
                   const Backend& backend) {
    nlohmann::ordered_json results = nlohmann::ordered_json::parse(to_json(evaluation));
    results["kind"] = "evaluate";
    results["checkpoint"] = checkpoint.path;
    results["step"] = checkpoint.step;
    results["data"] = job.data.evaluation_path.empty() || job.evaluate.rows == "all"
                          ? job.data.path
                          : job.data.evaluation_path;
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
    const CheckpointInfo checkpoint = find_checkpoint(job.evaluate.checkpoint, all);
    std::unique_ptr<BatchSource> source =
        make_evaluation_source(job.data, job.evaluate.tokens, /*whole=*/job.evaluate.rows == "all",
                               grid, backend, workers);
    if (source == nullptr)
        user_error(
            "[evaluate] rows = \"heldout\", but nothing is held out: set [data] holdout_fraction "
            "as in training or evaluation_path, or rows = \"all\"");
    check_fit(job, checkpoint, *source);
    all.stop_point("the data was opened");
    all.together([&] {
        if (all.rank() == 0) make_writable_folder(job.job.output);
    });
    const FolderLock lock(job.job.output, all);

    Params params(backend, checkpoint.shape, grid.feature_shard(checkpoint.shape.features),
                  checkpoint.model, /*seed=*/0);
    read_checkpoint(checkpoint.path, backend, grid, params, Span<Index>(), /*moments=*/false);
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
