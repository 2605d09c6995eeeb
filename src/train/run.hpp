// The training loop on given sources; trainer.cpp opens the real ones.
#pragma once

#include <memory>

#include "clt/comm/process_grid.hpp"
#include "clt/data/batch_source.hpp"
#include "clt/train/trainer.hpp"
#include "train/run_folder.hpp"

namespace clt {

struct RunSources {
    std::unique_ptr<BatchSource> training;
    TrainingData data;  // of `training`, for checkpoints
    /// A pass over the held-out tokens; null when nothing is held out.
    std::unique_ptr<BatchSource> evaluation;
};

/// Everything of train() but the folder and the sources. Collective over grid.all().
int run_training(const TrainJob& job, const TrainOptions& options, const RunFolder& folder,
                 RunSources sources, Backend& backend, const ProcessGrid& grid, Workers& workers);

}  // namespace clt
