#include "data/numpy_random.hpp"

#include <array>
#include <bit>
#include <numeric>

#include "clt/base/error.hpp"

namespace clt {
namespace {

// SeedSequence(seed).generate_state(8): a pool of 4 words, every word mixed into every other, then
// expanded. The constants are part of NumPy's documented algorithm.
class SeedSequence {
  public:
    explicit SeedSequence(std::uint64_t seed) {
        const std::array<std::uint32_t, 4> entropy{static_cast<std::uint32_t>(seed),
                                                   static_cast<std::uint32_t>(seed >> 32), 0, 0};
        for (std::size_t i = 0; i < 4; ++i) pool_[i] = hash(entropy[i]);
        for (std::size_t from = 0; from < 4; ++from)
            for (std::size_t to = 0; to < 4; ++to)
                if (from != to) pool_[to] = mix(pool_[to], hash(pool_[from]));
    }

    std::array<std::uint32_t, 8> words() const {
        std::array<std::uint32_t, 8> out{};
        std::uint32_t constant = 0x8B51F9DDU;
        for (std::size_t i = 0; i < out.size(); ++i) {
            std::uint32_t value = pool_[i % 4] ^ constant;
            constant *= 0x58F38DEDU;
            value *= constant;
            out[i] = value ^ (value >> 16);
        }
        return out;
    }

  private:
    std::uint32_t hash(std::uint32_t value) {
        value ^= constant_;
        constant_ *= 0x931E8875U;
        value *= constant_;
        return value ^ (value >> 16);
    }
    static std::uint32_t mix(std::uint32_t x, std::uint32_t y) {
        const std::uint32_t value = 0xCA01F9DDU * x - 0x4973F715U * y;
        return value ^ (value >> 16);
    }

    std::uint32_t constant_ = 0x43B0D7E5U;
    std::array<std::uint32_t, 4> pool_{};
};

}  // namespace

NumpyRandom::NumpyRandom(std::uint64_t seed) {
    const auto words = SeedSequence(seed).words();
    const auto wide = [&](std::size_t i) {  // four words: high 64 bits first, low word first inside
        const std::uint64_t high = words[i] | (std::uint64_t{words[i + 1]} << 32);
        const std::uint64_t low = words[i + 2] | (std::uint64_t{words[i + 3]} << 32);
        return (Wide{high} << 64) | low;
    };
    increment_ = (wide(4) << 1) | 1;
    step();
    state_ += wide(0);
    step();
}

void NumpyRandom::step() {
    constexpr Wide multiplier = (Wide{0x2360ED051FC65DA4U} << 64) | 0x4385DF649FCCF645U;
    state_ = state_ * multiplier + increment_;
}

std::uint64_t NumpyRandom::next64() {
    step();
    const auto high = static_cast<std::uint64_t>(state_ >> 64);
    const auto low = static_cast<std::uint64_t>(state_);
    return std::rotr(high ^ low, static_cast<int>(high >> 58));
}

std::uint32_t NumpyRandom::next32() {
    if (has_high_half_) {
        has_high_half_ = false;
        return high_half_;
    }
    const std::uint64_t bits = next64();
    high_half_ = static_cast<std::uint32_t>(bits >> 32);
    has_high_half_ = true;
    return static_cast<std::uint32_t>(bits);
}

std::uint32_t NumpyRandom::masked(std::uint32_t most) {
    if (most == 0) return 0;
    const std::uint32_t mask = 0xFFFFFFFFU >> std::countl_zero(most);
    std::uint32_t value = next32() & mask;
    while (value > most) value = next32() & mask;
    return value;
}

std::vector<std::uint32_t> NumpyRandom::permutation(Index n) {
    CLT_CHECK(n >= 0 && n <= Index{1} << 32, "n = {}", n);
    std::vector<std::uint32_t> items(static_cast<std::size_t>(n));
    std::iota(items.begin(), items.end(), 0U);
    shuffle(items);
    return items;
}

void NumpyRandom::skip_shuffle(Index n) {
    for (Index i = n - 1; i >= 1; --i) masked(static_cast<std::uint32_t>(i));
}

Index NumpyRandom::choice(Index n) {
    CLT_CHECK(n >= 1 && n < Index{1} << 32, "n = {}", n);
    if (n == 1) return 0;
    const auto range = static_cast<std::uint32_t>(n);
    const std::uint32_t reject_below = (0U - range) % range;
    std::uint64_t product = std::uint64_t{next32()} * range;
    while (static_cast<std::uint32_t>(product) < reject_below)
        product = std::uint64_t{next32()} * range;
    return static_cast<Index>(product >> 32);
}

}  // namespace clt
