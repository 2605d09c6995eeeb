// A run's place on disk: decides between a new run, a continued one and one that starts from
// another run's checkpoint, and refuses to mix two.
#pragma once

#include <optional>
#include <string>

#include "clt/comm/communicator.hpp"
#include "clt/io/folder_lock.hpp"
#include "clt/train/checkpoint.hpp"
#include "clt/train/trainer.hpp"

namespace clt {

struct RunFolder {
    std::string path;
    std::string checkpoints;  // path/checkpoints
    /// What the run starts from; none: from the initial parameters.
    std::optional<CheckpointHeader> start;
    bool fork = false;  // start is another run's
    std::optional<FolderLock> lock;

    std::string metrics_file() const { return path + "/metrics.jsonl"; }
    std::string results_file() const { return path + "/results.json"; }
};

/// Makes the folder, when missing, and decides what the run starts from. A run in it stays as it
/// is. shape: of the job's model on its data. Collective. Throws UserError when the folder is not
/// writable, is in use by another job, holds a run that is not to go on, or the checkpoint does not
/// fit the job.
RunFolder open_run_folder(const TrainJob& job, const Shape& shape, const TrainOptions& options,
                          const Communicator& all);

/// From here on the folder is this run's: what tells of steps after its start moves to
/// checkpoints/superseded-<k>, results.json of an earlier end goes, job.resolved.toml is written.
/// For when everything was checked. Rank 0 only. Throws UserError.
void take_over(const RunFolder& folder, const TrainJob& job, const TrainOptions& options);

}  // namespace clt
