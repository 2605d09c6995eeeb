// Counter-based random numbers: a value depends on (seed, purpose, id) alone, never on rank, thread
// or order, so parameters and shuffles are the same on every grid. Philox4x32-10. Source: Salmon et
// al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3 and table 2.
#pragma once

#include <array>
#include <cstdint>

namespace clt {

/// Independent streams of one seed. A new purpose gets a new number; numbers are never reused.
enum class RandomPurpose : std::uint32_t {
    encoder_weight = 1,
    decoder_weight = 2,
    chunk_shuffle = 3,
    synthetic_batch = 4,
};

namespace detail {
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                              std::uint32_t key0, std::uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter[2];
        counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0,
                   static_cast<std::uint32_t>(product1),
                   static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1,
                   static_cast<std::uint32_t>(product0)};
        key0 += 0x9E3779B9U;
        key1 += 0xBB67AE85U;
    }
    return counter;
}
}  // namespace detail

/// 32 random bits number `id` of the stream (seed, purpose).
constexpr std::uint32_t random_bits(std::uint64_t seed, RandomPurpose purpose, std::uint64_t id) {
    const std::uint64_t block = id / 4;
    const auto words =
        detail::philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                        static_cast<std::uint32_t>(purpose), 0U},
                       static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
    return words[id % 4];
}

/// Uniform float in [low, high), 24 random bits.
constexpr float random_uniform(std::uint64_t seed, RandomPurpose purpose, std::uint64_t id,
                               float low, float high) {
    const float unit = static_cast<float>(random_bits(seed, purpose, id) >> 8) * 0x1p-24F;
    return low + (high - low) * unit;
}

}  // namespace clt
