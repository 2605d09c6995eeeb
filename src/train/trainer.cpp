#include "clt/train/trainer.hpp"

#include "clt/base/disk_full.hpp"
#include "clt/base/log.hpp"
#include "clt/data/sources.hpp"
#include "clt/train/cost_query.hpp"
#include "train/run.hpp"

namespace clt {
namespace {

// Before the run folder is made and anything large is allocated. Returns the bytes of a checkpoint.
Index check_it_fits(const TrainJob& job, const ProcessGrid& grid, const Backend& backend) {
    const DataShape data = data_shape(ActivationDataset(job.data.path, grid.all()));
    CostQuery query = cost_query(job, data, grid.data_parts(), grid.feature_parts());
    describe_backend(backend, query);
    const StepCost cost = step_cost(query);
    check_memory(cost, backend, grid.all());
    grid.all().stop_point("the data was opened");
    log_info("memory: {}", memory_summary(cost));
    return cost.checkpoint_bytes;
}

void check_disk(const TrainJob& job, const RunFolder& folder, Index bytes,
                const Communicator& all) {
    try {
        require_disk_space(folder.checkpoints, bytes, all);
    } catch (const DiskFullError& e) {
        if (job.checkpoint.on_full == "stop") throw;
        log_warning("{}; training begins all the same ([checkpoint] on_full = \"continue\")",
                    e.what());
    }
}

// What would only show at the first evaluation, after hours.
void check_evaluation(const TrainJob& job, const RunSources& sources) {
    if (sources.evaluation != nullptr) return;
    if (!job.data.evaluation_path.empty())
        user_error("[data] evaluation_path = {}: has no tokens", job.data.evaluation_path);
}

}  // namespace

int train(const TrainJob& job, const TrainOptions& options, Backend& backend,
          const Communicator& world, Workers& workers) {
    const ProcessGrid grid(world, job.grid);
    const Index checkpoint_bytes = check_it_fits(job, grid, backend);
    RunSources sources;
    sources.data =
        training_data(ActivationDataset(job.data.path, grid.all()), job.data.normalization);
    const Normalization& normalization = sources.data.normalization;
    sources.training = make_training_source(
        job.data, normalization, static_cast<std::uint64_t>(job.job.seed), grid, backend, workers);
    sources.evaluation = make_evaluation_source(job.data, normalization, job.evaluation.tokens,
                                                /*whole=*/false, grid, backend, workers);
    check_evaluation(job, sources);
    const Shape shape{sources.training->layers(), sources.training->d_model(), job.model.features};
    grid.all().stop_point("the data was opened");
    const RunFolder folder = open_run_folder(job, shape, options, grid.all());
    check_disk(job, folder, checkpoint_bytes, grid.all());
    return run_training(job, options, folder, std::move(sources), backend, grid, workers);
}

}  // namespace clt
