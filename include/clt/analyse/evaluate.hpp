// `clt evaluate`: how well a trained transcoder does on a data set.
#pragma once

#include "clt/analyse/config.hpp"
#include "clt/backend/backend.hpp"
#include "clt/base/worker.hpp"
#include "clt/comm/communicator.hpp"
#include "clt/train/metrics.hpp"

namespace clt {

/// Loads the checkpoint (written on any grid), runs it over the data set once, writes
/// job.output/results.json and prints a table on rank 0's stdout. Activations are normalised with
/// the checkpoint's own statistics, whatever the data set. Dead features are those that never fire
/// in this pass. Collective over `world`. Throws UserError: no whole checkpoint, a data
/// set of another width or depth, another normalisation than in training, nothing held out.
Evaluation evaluate(const EvaluateJob& job, Backend& backend, const Communicator& world,
                    Workers& workers);

}  // namespace clt
