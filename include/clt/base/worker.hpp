// A thread that runs tasks one after the other, in the order in which they were given. Tasks that
// are collective are given by the main threads of all ranks in the same order; so the same task
// runs everywhere, and nobody has to agree on where to stop: a worker that has run what it was
// given stands at the same place on every rank.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

namespace clt {

class Worker {
  public:
    Worker() = default;
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    /// As finish().
    ~Worker();

    /// Queues the task; the thread starts with the first one. The future is ready when the task has
    /// run and gives what it threw. What the task refers to must live until then.
    std::shared_future<void> give(std::function<void()> task);
    /// Gives the task, waits for it and rethrows what it threw.
    void call(std::function<void()> task) { give(std::move(task)).get(); }
    /// Returns when everything given so far has run and the thread has ended.
    void finish();

  private:
    void run();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::packaged_task<void()>> tasks_;
    bool finishing_ = false;
    std::thread thread_;
};

/// The background threads of a rank. main makes them and joins them, after all ranks have met and
/// before MPI ends: an error may unwind everything else while they are in a collective call.
struct Workers {
    /// The one thread that uses HDF5 and MPI-IO while it has tasks: chunks and checkpoints.
    Worker io;
    /// Makes batches of what io has read.
    Worker batches;

    void finish() {
        io.finish();  // may wait for a batch, never the other way round
        batches.finish();
    }
};

}  // namespace clt
