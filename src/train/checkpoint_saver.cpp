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

    void prune(const std::string& best) const {
        all.together([&] {
            if (all.rank() == 0) prune_checkpoints(folder, keep, best);
        });
    }
};

CheckpointSaver::CheckpointSaver(const CheckpointConfig& config, std::string folder,
                                 const ProcessGrid& grid, Backend& backend, Workers& workers)
    : backend_(&backend),
      grid_(&grid),
      workers_(&workers),
      asynchronous_(config.asynchronous),
      shared_(new Shared{std::move(folder), config.keep, grid.all().duplicate(), {}, {}}) {}

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
                           const CheckpointState& state, const std::string& best) {
    wait();
    Shared& shared = *shared_;
    shared.snapshot.take(*backend_, *grid_, params, silence, model, state);
    shared.failed = false;
    last_ = workers_->io.give([&shared, best] {
        try {
            write_checkpoint(shared.folder, shared.snapshot, shared.all);
            shared.prune(best);
        } catch (...) {
            shared.failed = true;
            throw;
        }
    });
    if (!asynchronous_) wait();
}

void CheckpointSaver::wait() {
    if (last_.valid()) std::exchange(last_, {}).get();
}

bool CheckpointSaver::has_failed() const {
    return shared_->failed;
}

void CheckpointSaver::prune(const std::string& best) {
    wait();
    last_ = workers_->io.give([&shared = *shared_, best] { shared.prune(best); });
}

}  // namespace clt
