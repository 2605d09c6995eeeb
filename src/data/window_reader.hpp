// Reads units (chunks or pieces of them) in the order of a stream of takes, one ahead of the one in
// use. Every rank holds its contiguous part of a unit's rows, in the stored element type. Two units
// are kept: the one in use and the next; one that is still there is not read again.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <vector>

#include "clt/data/dataset.hpp"

namespace clt {

/// Rows [begin, begin + rows) of a chunk: what is read and shuffled as one.
struct Unit {
    std::size_t chunk = 0;  // position in ActivationDataset::chunks()
    Index begin = 0;
    Index rows = 0;
};

/// Two threads use it: the I/O thread calls read() for each take, the thread that makes batches
/// calls current() and done() for each of the same takes, in the same order.
class WindowReader {
  public:
    /// All references must outlive it.
    WindowReader(const ActivationDataset& dataset, const std::vector<Unit>& units,
                 const Communicator& communicator)
        : dataset_(&dataset), units_(&units), communicator_(&communicator) {}

    /// Brings the unit of the next take into a window: waits until all takes but the one before
    /// it are done. Collective. Does nothing after a failure, which current() tells.
    void read(std::size_t unit);

    /// This rank's part, shard_of(unit rows, rank, ranks), of the unit of the oldest take that is
    /// not done; waits for it. Throws what reading threw.
    const std::byte* current();
    /// That take is used up.
    void done();
    /// No take will be done any more: a read that would wait for one returns.
    void give_up();

  private:
    struct Window {
        std::optional<std::size_t> unit;
        std::vector<std::byte> rows;
    };

    const ActivationDataset* dataset_;
    const std::vector<Unit>* units_;
    const Communicator* communicator_;
    std::array<Window, 2> windows_;
    std::size_t latest_ = 0;  // the window of the last take read

    std::mutex mutex_;  // of what follows
    std::condition_variable changed_;
    std::deque<std::size_t> visits_;  // windows of the takes that are read and not done
    bool given_up_ = false;
    std::exception_ptr failure_;
};

}  // namespace clt
