#include "data/window_reader.hpp"

namespace clt {

void WindowReader::read(std::size_t unit) {
    {
        std::unique_lock lock(mutex_);
        // With one take in use, the other window is free.
        changed_.wait(lock, [&] { return visits_.size() < 2 || given_up_; });
        // Which takes are done when a batch fails is the same on every rank: there a read runs
        // everywhere or nowhere, however far the threads were.
        if (visits_.size() >= 2 || failure_) return;
    }
    try {
        if (windows_[latest_].unit != unit) {
            latest_ = 1 - latest_;
            Window& window = windows_[latest_];
            if (window.unit != unit) {
                const Unit& wanted = (*units_)[unit];
                const Shard part =
                    shard_of(wanted.rows, communicator_->rank(), communicator_->size());
                window.unit.reset();
                dataset_->read(wanted.chunk, {wanted.begin + part.begin, wanted.begin + part.end},
                               window.rows, *communicator_);
                window.unit = unit;
            }
        }
        const std::lock_guard lock(mutex_);
        visits_.push_back(latest_);
    } catch (...) {
        const std::lock_guard lock(mutex_);
        failure_ = std::current_exception();
    }
    changed_.notify_all();
}

const std::byte* WindowReader::current() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !visits_.empty() || failure_; });
    if (visits_.empty()) std::rethrow_exception(failure_);
    return windows_[visits_.front()].rows.data();
}

void WindowReader::done() {
    const std::lock_guard lock(mutex_);
    visits_.pop_front();
    changed_.notify_all();
}

void WindowReader::give_up() {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
    changed_.notify_all();
}

}  // namespace clt
