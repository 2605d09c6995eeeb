// A background thread whose steps are collective: it runs on every rank, and step i on one rank
// meets step i on the others. So it can only be halted between the same two steps everywhere: ranks
// agree on the furthest step begun, and who is behind catches up. It also owns the lock that guards
// what the steps produce.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>

#include "clt/comm/communicator.hpp"

namespace clt {

class LockstepThread {
  public:
    /// ready: may the next step begin? Called with the lock held; must become true on every rank
    /// after the same calls of the owner. step: called without the lock; false: nothing is left.
    LockstepThread(std::function<bool()> ready, std::function<bool()> step)
        : ready_(std::move(ready)), step_(std::move(step)) {}
    LockstepThread(const LockstepThread&) = delete;
    LockstepThread& operator=(const LockstepThread&) = delete;
    /// Must be stopped or abandoned by now, or never have been started.
    ~LockstepThread() = default;

    void start();

    /// Runs `change` with the lock held, then wakes whoever waits.
    template <class Change>
    void locked(Change&& change) {
        const std::lock_guard lock(mutex_);
        change();
        changed_.notify_all();
    }
    /// Waits for condition() (called with the lock held) or the thread's end. Rethrows what ended
    /// the thread when the condition does not hold.
    template <class Condition>
    void wait(Condition&& condition) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return condition() || ended_; });
        if (!condition() && failure_) std::rethrow_exception(failure_);
    }

    /// Returns when no step runs, on no rank; none begins until release(). Collective.
    void hold(const Communicator& communicator);
    void release();
    /// As hold, then ends the thread. Collective.
    void stop(const Communicator& communicator);
    /// Lets go of a thread that other ranks may keep waiting: for unwinding, where nothing
    /// collective can be done and the process is about to be aborted. The owner must leak what the
    /// thread uses.
    void abandon();

  private:
    static constexpr std::int64_t no_limit = std::numeric_limits<std::int64_t>::max();
    void run();

    std::function<bool()> ready_;
    std::function<bool()> step_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::int64_t started_ = 0;
    std::int64_t finished_ = 0;
    std::int64_t limit_ = no_limit;  // steps that may begin
    bool stopping_ = false;
    bool abandoned_ = false;
    bool ended_ = false;
    std::exception_ptr failure_;
    std::thread thread_;
};

}  // namespace clt
