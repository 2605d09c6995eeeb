#include "data/window_reader.hpp"

namespace clt {

WindowReader::WindowReader(const ActivationDataset& dataset, const std::vector<Unit>& units,
                           const Sampler& sampler, StreamPosition start,
                           const Communicator& communicator, bool background)
    : dataset_(&dataset),
      units_(&units),
      stream_(sampler, start),
      communicator_(&communicator),
      background_(background),
      // With one take in use, the other window is free.
      thread_([this] { return visits_.size() < 2; }, [this] { return read_next(); }) {
    if (background_) thread_.start();
}

bool WindowReader::read_next() {
    if (stream_.done()) return false;
    const std::size_t number = stream_.take().unit;
    if (windows_[latest_].unit != number) {
        latest_ = 1 - latest_;
        Window& window = windows_[latest_];
        if (window.unit != number) {
            const Unit& unit = (*units_)[number];
            const Shard part = shard_of(unit.rows, communicator_->rank(), communicator_->size());
            window.unit.reset();
            dataset_->read(unit.chunk, {unit.begin + part.begin, unit.begin + part.end},
                           window.rows, *communicator_);
            window.unit = number;
        }
    }
    thread_.locked([&] { visits_.push_back(latest_); });
    stream_.advance();
    return true;
}

const std::byte* WindowReader::current() {
    if (background_)
        thread_.wait([&] { return !visits_.empty(); });
    else if (visits_.empty())
        read_next();
    std::size_t window = 0;
    thread_.locked([&] {
        CLT_CHECK(!visits_.empty());
        window = visits_.front();
    });
    return windows_[window].rows.data();
}

void WindowReader::done() {
    thread_.locked([&] { visits_.pop_front(); });
}

void WindowReader::hold(const Communicator& control) {
    if (background_) thread_.hold(control);
}

void WindowReader::release() {
    if (background_) thread_.release();
}

void WindowReader::stop(const Communicator& control) {
    if (background_) thread_.stop(control);
}

}  // namespace clt
