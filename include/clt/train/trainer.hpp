// `clt train`: a run folder in, a trained transcoder out. The run folder (job.output) holds
//   job.resolved.toml    every setting with its value
//   metrics.jsonl        one object a logged step (train/metrics.hpp)
//   checkpoints/step_N.h5
//   results.json         when the run is complete
// The step itself is model/step.hpp; this page is about order, files and stopping.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/base/worker.hpp"
#include "clt/comm/communicator.hpp"
#include "clt/train/config.hpp"

namespace clt {

struct TrainOptions {
    std::string resolved_job;  // TOML, equal on every rank
    /// Goes on with the run in job.output, when there is one.
    bool resume = false;
    /// Goes on from this checkpoint of the run instead of the newest; then there must be a run.
    std::optional<Index> resume_step;
    /// A new run starts from this checkpoint of another run: a file, a run folder or a folder of
    /// checkpoints (the newest). Empty: from initial parameters.
    std::string fork;
    /// fork: the moments and the count of Adam's updates start at 0.
    bool fresh_optimizer = false;
    /// The keys in which two resolved jobs differ, execution keys apart. The trainer cannot read
    /// TOML, app/ can.
    std::function<std::vector<FieldChange>(const std::string& stored, const std::string& now)>
        differences;
};

/// Trains until schedule.steps are done (returns 0) or a signal stops the run with a checkpoint
/// written (exit_interrupted; Stopped before the first step of this process: nothing is lost).
/// resume: continues from the newest whole checkpoint of job.output, written on any grid, cutting
/// metrics.jsonl back to it; starts when there is no run yet, so a requeued job may always pass it.
/// On the same grid the losses that follow are bit for bit those of a run never interrupted.
/// fork: parameters, silence and moments are another run's, everything else starts at 0: steps,
/// tokens, the schedule, the order of the batches. Adam's bias correction goes on counting.
/// Collective over `world`. Throws UserError, before it changes a file of a run, when the folder
/// already holds a run and resume is false, when the settings differ from the run's, when the data,
/// memory or the grid do not fit; later when the loss was not finite for 20 steps in a row.
int train(const TrainJob& job, const TrainOptions& options, Backend& backend,
          const Communicator& world, Workers& workers);

}  // namespace clt
