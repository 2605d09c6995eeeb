#include "data/lockstep_thread.hpp"

namespace clt {

void LockstepThread::start() {
    thread_ = std::thread([this] { run(); });
}

void LockstepThread::run() {
    std::unique_lock lock(mutex_);
    bool more = true;
    while (more) {
        changed_.wait(lock,
                      [&] { return abandoned_ || (started_ < limit_ ? ready_() : stopping_); });
        if (abandoned_ || started_ >= limit_) break;
        ++started_;
        lock.unlock();
        std::exception_ptr failure;
        try {
            more = step_();
        } catch (...) {
            failure = std::current_exception();
            more = false;
        }
        lock.lock();
        failure_ = failure;
        ++finished_;
        changed_.notify_all();
    }
    ended_ = true;
    changed_.notify_all();
}

void LockstepThread::hold(const Communicator& communicator) {
    std::int64_t begun = 0;
    locked([&] { begun = limit_ = started_; });
    const std::int64_t furthest = communicator.all_reduce_max(begun);
    locked([&] { limit_ = furthest; });
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished_ == furthest || ended_ || !thread_.joinable(); });
}

void LockstepThread::release() {
    locked([&] { limit_ = no_limit; });
}

void LockstepThread::stop(const Communicator& communicator) {
    hold(communicator);
    locked([&] { stopping_ = true; });
    if (thread_.joinable()) thread_.join();
}

void LockstepThread::abandon() {
    locked([&] { abandoned_ = true; });
    if (thread_.joinable()) thread_.detach();
}

}  // namespace clt
