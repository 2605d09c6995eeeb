// Reads units (chunks or pieces of them) in the order of a stream of takes, one ahead of the one in
// use. Every rank holds its contiguous part of a unit's rows, in the stored element type. Two units
// are kept: the one in use and the next; one that is still there is not read again.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <optional>
#include <vector>

#include "clt/data/dataset.hpp"
#include "data/lockstep_thread.hpp"
#include "data/sampler.hpp"

namespace clt {

/// Rows [begin, begin + rows) of a chunk: what is read and shuffled as one.
struct Unit {
    std::size_t chunk = 0;  // position in ActivationDataset::chunks()
    Index begin = 0;
    Index rows = 0;
};

class WindowReader {
  public:
    /// All references must outlive it. background: read in a thread of its own.
    WindowReader(const ActivationDataset& dataset, const std::vector<Unit>& units,
                 const Sampler& sampler, StreamPosition start, const Communicator& communicator,
                 bool background);

    /// This rank's part, shard_of(unit rows, rank, ranks), of the unit of the oldest take that is
    /// not done; waits for it. Throws what reading threw. Collective when not in the background.
    const std::byte* current();
    /// That take is used up.
    void done();

    /// See LockstepThread. Collective over `control`.
    void hold(const Communicator& control);
    void release();
    void stop(const Communicator& control);
    void abandon() { thread_.abandon(); }

  private:
    struct Window {
        std::optional<std::size_t> unit;
        std::vector<std::byte> rows;
    };
    bool read_next();

    const ActivationDataset* dataset_;
    const std::vector<Unit>* units_;
    TakeStream stream_;
    const Communicator* communicator_;
    bool background_;
    std::array<Window, 2> windows_;
    std::size_t latest_ = 0;          // the window of the last take read
    std::deque<std::size_t> visits_;  // windows of the takes that are read and not done
    LockstepThread thread_;
};

}  // namespace clt
