#include "clt/train/trainer.hpp"

#include "clt/data/sources.hpp"
#include "train/run.hpp"

namespace clt {

int train(const TrainJob& job, const TrainOptions& options, Backend& backend,
          const Communicator& world) {
    const ProcessGrid grid(world, job.grid);
    const RunFolder folder = open_run_folder(job.job.output, options, grid.all());
    RunSources sources;
    sources.training =
        make_training_source(job.data, static_cast<std::uint64_t>(job.job.seed), grid);
    sources.open_evaluation = [&] {
        return make_evaluation_source(job.data, job.evaluation.tokens, /*whole=*/false, grid);
    };
    return run_training(job, options, folder, std::move(sources), backend, grid);
}

}  // namespace clt
