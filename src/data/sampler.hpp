// The order of tokens: a stream without end (or of one pass) that depends on seed, unit sizes and
// epoch only, never on the grid. A unit is a chunk of the data set, or a piece of one. An epoch is
// a sequence of takes, each some rows of a unit's permutation; batches cut the stream of takes
// anywhere, so no row is lost and epochs follow without a gap. Where the reference yields whole
// batches, the takes begin with them (reference-spec 3.2, 3.3; case C17).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "clt/base/types.hpp"
#include "data/numpy_random.hpp"

namespace clt {

enum class Sampling {
    sequential,    // units in random order, each used up before the next
    random_chunk,  // a random unit for every `take` rows; what is shorter comes last
    in_order,      // units and rows as they are stored, one epoch
};

struct SamplerSettings {
    Sampling sampling = Sampling::sequential;
    std::uint64_t seed = 0;
    Index take = 1;              // random_chunk: rows of a take, the batch's size
    std::vector<Index> sizes{};  // rows of every unit
};

/// Elements [begin, begin + count) of the permutation of a unit's rows.
struct Take {
    std::size_t unit = 0;
    Index begin = 0;
    Index count = 0;
};

/// The takes of one epoch, and the permutations of its units on demand: only a generator state is
/// kept for a unit, not its rows.
class Epoch {
  public:
    Epoch(const SamplerSettings& settings, Index epoch);

    const std::vector<Take>& takes() const { return takes_; }
    /// Row numbers of the unit in this epoch's order, [size].
    std::vector<std::uint32_t> rows(std::size_t unit) const;

  private:
    void draw_random_takes(NumpyRandom& random);

    SamplerSettings settings_;
    std::vector<NumpyRandom> before_shuffle_;  // by unit; empty for in_order
    std::vector<Take> takes_;
};

/// Makes epochs; two threads share it.
class Sampler {
  public:
    explicit Sampler(SamplerSettings settings);

    Index tokens() const { return tokens_; }
    bool endless() const { return settings_.sampling != Sampling::in_order; }
    /// Thread-safe; the last two epochs are remembered.
    std::shared_ptr<const Epoch> epoch(Index number) const;

  private:
    SamplerSettings settings_;
    Index tokens_ = 0;
    mutable std::mutex mutex_;
    mutable std::vector<std::pair<Index, std::shared_ptr<const Epoch>>> recent_;
};

/// A place in the stream: `offset` tokens of epoch `epoch` are behind it; offset < tokens of an
/// epoch, save at the end of a single pass.
struct StreamPosition {
    Index epoch = 0;
    Index offset = 0;
    bool operator==(const StreamPosition&) const = default;
};

/// Walks the takes from a position on.
class TakeStream {
  public:
    TakeStream(const Sampler& sampler, StreamPosition start);

    /// True after the last take of a single pass.
    bool done() const;
    /// The current take, without what came before the start position.
    const Take& take() const { return take_; }
    const Epoch& epoch() const { return *epoch_; }
    void advance();

  private:
    void settle();

    const Sampler* sampler_;
    Index number_;
    std::shared_ptr<const Epoch> epoch_;
    std::size_t next_ = 0;  // take_ is number next_ of the epoch
    Take take_;
};

}  // namespace clt
