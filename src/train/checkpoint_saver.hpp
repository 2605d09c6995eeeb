// Saves checkpoints beside training: the main thread copies a step's state into host memory, the
// I/O thread writes it while the next steps run.
//   save(n):  wait for save n-1 | copy | give the write to io | return
//   io:                                  create, write, check, fsync, rename, prune
#pragma once

#include <future>
#include <memory>
#include <string>

#include "clt/base/worker.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/train/checkpoint.hpp"
#include "clt/train/config.hpp"

namespace clt {

class CheckpointSaver {
  public:
    /// References must outlive it. Collective over grid.all(), as is destruction.
    /// resumed_from: a checkpoint of this folder; null: a new run.
    CheckpointSaver(const CheckpointConfig& config, const std::string& folder,
                    const CheckpointHeader* resumed_from, const ProcessGrid& grid, Backend& backend,
                    Workers& workers);
    CheckpointSaver(const CheckpointSaver&) = delete;
    CheckpointSaver& operator=(const CheckpointSaver&) = delete;
    ~CheckpointSaver();

    /// Waits for the save before, copies the state, and returns while it is written (or, with
    /// config.asynchronous false, when that is over; wait() tells how). best_step: the checkpoint
    /// that pruning spares beside the newest. Collective. Throws what the save before threw.
    void save(Params& params, Span<const Index> silence, const ModelConfig& model,
              const CheckpointState& state, Index best_step);

    /// Returns when the last save is on disk. Collective. Throws what it failed with: UserError, or
    /// DiskFullError; once.
    void wait();
    /// The last save has failed, and wait() is to tell why. Ranks notice at different times.
    bool has_failed() const;
    /// Prunes behind what is under way, for a new best. Collective.
    void prune(Index best_step);

  private:
    struct Shared;  // what the I/O thread uses

    Backend* backend_;
    const ProcessGrid* grid_;
    Workers* workers_;
    bool asynchronous_;
    std::unique_ptr<Shared> shared_;
    std::shared_future<void> last_;
};

}  // namespace clt
