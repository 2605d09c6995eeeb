// numpy's default_rng, bit for bit, so that the order of batches is the reference's: PCG64 (XSL-RR
// 128/64) seeded through SeedSequence, with the 32-bit draws, shuffle and choice of its Generator.
// Sources: O'Neill 2014, "PCG", section 6.3; NumPy NEP 19 and the SeedSequence documentation;
// reference-spec 3.2.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "clt/base/types.hpp"

namespace clt {

class NumpyRandom {
  public:
    explicit NumpyRandom(std::uint64_t seed);

    std::uint64_t next64();
    /// The low half of a 64-bit output, then its high half.
    std::uint32_t next32();

    /// Uniform in [0, most] by mask and reject; most < 2^32. Draws nothing for most == 0.
    std::uint32_t masked(std::uint32_t most);

    /// Generator.shuffle: Fisher-Yates from the last element down.
    template <class T>
    void shuffle(std::vector<T>& items) {
        for (std::size_t i = items.size(); i-- > 1;)
            std::swap(items[i], items[masked(static_cast<std::uint32_t>(i))]);
    }
    /// Generator.permutation(n).
    std::vector<std::uint32_t> permutation(Index n);
    /// Consumes the draws of a shuffle of n items without the items (they do not depend on them).
    void skip_shuffle(Index n);

    /// Generator.choice among n (Lemire's bounded draw); draws nothing for n == 1.
    Index choice(Index n);

  private:
    __extension__ using Wide = unsigned __int128;

    void step();

    Wide state_ = 0;
    Wide increment_ = 0;
    std::uint32_t high_half_ = 0;
    bool has_high_half_ = false;
};

}  // namespace clt
