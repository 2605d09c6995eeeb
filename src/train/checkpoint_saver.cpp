#include "train/checkpoint_saver.hpp"

#include <atomic>
#include <exception>
#include <utility>

namespace clt {

struct CheckpointSaver::Shared {
    std::string folder;
    Index keep = 0;
    Communicator all;  // a duplicate: the main thread's traffic never meets a save's
    CheckpointSnapshot snapshot;
    std::atomic<bool> failed{false};

    CheckpointKeeper keeper;

    void prune(Index best_step) {
        all.together([&] {
            if (all.rank() == 0) keeper.prune(keep, best_step);
        });
    }
};

CheckpointSaver::CheckpointSaver(const CheckpointConfig& config, const std::string& folder,
                                 const CheckpointHeader* resumed_from, const ProcessGrid& grid,
                                 Backend& backend, Workers& workers)
    : backend_(&backend),
      grid_(&grid),
      workers_(&workers),
      asynchronous_(config.asynchronous),
      shared_(new Shared{folder,
                         config.keep,
                         grid.all().duplicate(),
                         {},
                         {},
                         CheckpointKeeper(folder, resumed_from)}) {}

CheckpointSaver::~CheckpointSaver() {
    if (std::uncaught_exceptions() == 0) {
        if (last_.valid()) last_.wait();
        return;
    }
    // A save may be under way. When all ranks have failed alike, main lets the I/O thread finish
    // it; else it aborts the job.
    static_cast<void>(shared_.release());
}

void CheckpointSaver::save(Params& params, Span<const Index> silence, const ModelConfig& model,
                           const CheckpointState& state, Index best_step) {
    wait();
    Shared& shared = *shared_;
    shared.snapshot.take(*backend_, *grid_, params, silence, model, state);
    last_ = workers_->io.give([&shared, best_step] {
        try {
            shared.keeper.written(write_checkpoint(shared.folder, shared.snapshot, shared.all));
            shared.prune(best_step);
        } catch (...) {
            shared.failed = true;
            throw;
        }
    });
    if (!asynchronous_) last_.wait();
}

void CheckpointSaver::wait() {
    if (!last_.valid()) return;
    last_.wait();
    shared_->failed = false;
    std::exchange(last_, {}).get();
}

bool CheckpointSaver::has_failed() const {
    return shared_->failed;
}

void CheckpointSaver::prune(Index best_step) {
    wait();
    last_ = workers_->io.give([&shared = *shared_, best_step] { shared.prune(best_step); });
}

}  // namespace clt
