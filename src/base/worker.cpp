#include "clt/base/worker.hpp"

#include <utility>

namespace clt {

Worker::~Worker() {
    finish();
}

std::shared_future<void> Worker::give(std::function<void()> task) {
    std::packaged_task<void()> packaged(std::move(task));
    std::shared_future<void> done = packaged.get_future().share();
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(packaged));
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    changed_.notify_one();
    return done;
}

void Worker::finish() {
    {
        const std::lock_guard lock(mutex_);
        if (!thread_.joinable()) return;
        finishing_ = true;
        changed_.notify_one();
    }
    thread_.join();
    finishing_ = false;
}

void Worker::run() {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return finishing_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        std::packaged_task<void()> task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        task();
        lock.lock();
    }
}

}  // namespace clt
