// Elementary functions that the compiler vectorises: no branches, no calls, no tables.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace clt {

/// e^x to 2 ulp on [-87, 88]; beyond, the value at the nearer end (never infinity or 0). NaN stays.
/// x = n ln2 + r with |r| <= ln2 / 2, e^r by its Taylor polynomial to r^7 (next term < 6e-9).
inline float exp_bounded(float x) {
    constexpr float log2e = 1.44269504F;
    constexpr float ln2_high = 0.693359375F;  // 9 bits, so n * ln2_high is exact
    constexpr float ln2_low = -2.12194440e-4F;
    constexpr float round_magic = 12582912.0F;  // 1.5 * 2^23: its unit is 1, adding it rounds
    x = std::min(std::max(x, -87.0F), 88.0F);
    const float shifted = x * log2e + round_magic;
    const float n = shifted - round_magic;
    const float r = (x - n * ln2_high) - n * ln2_low;
    float p = 1.0F / 5040;
    p = p * r + 1.0F / 720;
    p = p * r + 1.0F / 120;
    p = p * r + 1.0F / 24;
    p = p * r + 1.0F / 6;
    p = p * r + 0.5F;
    p = p * r + 1.0F;
    p = p * r + 1.0F;
    const auto exponent = (std::bit_cast<std::uint32_t>(shifted) + 127U) << 23;
    return p * std::bit_cast<float>(exponent);
}

/// x * Phi(x) by the tanh formula: 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)),
/// u = sqrt(2/pi) (x + 0.044715 x^3). Source: Hendrycks & Gimpel 2016, section 2.
inline float gelu_tanh(float x) {
    const float u = 0.797884561F * (x + 0.044715F * x * x * x);
    return x / (1.0F + exp_bounded(-2.0F * u));
}

}  // namespace clt
