// A run's place on disk: decides between a new run and a continued one, and refuses to mix two.
#pragma once

#include <optional>
#include <string>

#include "clt/comm/communicator.hpp"
#include "clt/train/checkpoint.hpp"
#include "clt/train/trainer.hpp"

namespace clt {

struct RunFolder {
    std::string path;
    std::string checkpoints;  // path/checkpoints
    std::optional<CheckpointInfo> resume_from;

    std::string metrics_file() const { return path + "/metrics.jsonl"; }
    std::string results_file() const { return path + "/results.json"; }
};

/// Makes the folder, finds what to resume from, writes job.resolved.toml. Collective. Throws
/// UserError: unwritable; holds a run and resume is false; the run's settings differ from the
/// job's.
RunFolder open_run_folder(const std::string& path, const TrainOptions& options,
                          const Communicator& all);

}  // namespace clt
