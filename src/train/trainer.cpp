#include "clt/train/trainer.hpp"

#include "clt/base/log.hpp"
#include "clt/data/sources.hpp"
#include "clt/train/cost_query.hpp"
#include "train/run.hpp"

namespace clt {
namespace {

// Before the run folder is made and anything large is allocated.
void check_it_fits(const TrainJob& job, const ProcessGrid& grid, const Backend& backend) {
    const DataShape data = data_shape(ActivationDataset(job.data.path, grid.all()));
    CostQuery query = cost_query(job, data, grid.data_parts(), grid.feature_parts());
    describe_backend(backend, query);
    const StepCost cost = step_cost(query);
    check_memory(cost, backend, grid.all());
    log_info("memory: {}", memory_summary(cost));
}

}  // namespace

int train(const TrainJob& job, const TrainOptions& options, Backend& backend,
          const Communicator& world, Workers& workers) {
    const ProcessGrid grid(world, job.grid);
    check_it_fits(job, grid, backend);
    const RunFolder folder = open_run_folder(job.job.output, options, grid.all());
    RunSources sources;
    sources.training = make_training_source(job.data, static_cast<std::uint64_t>(job.job.seed),
                                            grid, backend, workers);
    sources.open_evaluation = [&] {
        return make_evaluation_source(job.data, job.evaluation.tokens, /*whole=*/false, grid,
                                      backend, workers);
    };
    return run_training(job, options, folder, std::move(sources), backend, grid);
}

}  // namespace clt
