// Storage types of activations and weights. We always compute in float32; these convert at the
// edges.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

#include "clt/base/types.hpp"

namespace clt {

/// Two bytes that hold a bfloat16.
struct Bfloat16 {
    std::uint16_t bits = 0;
};

enum class DType { float32, float16, bfloat16 };

constexpr Index size_of(DType type) {
    return type == DType::float32 ? 4 : 2;
}
/// "float32", "float16", "bfloat16".
std::string_view name_of(DType type);
std::optional<DType> dtype_from_name(std::string_view name);

constexpr float bfloat16_to_float(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Round to nearest even; NaN stays NaN (quiet bit set).
constexpr std::uint16_t float_to_bfloat16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

constexpr float float16_to_float(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1FU;
    const std::uint32_t mantissa = bits & 0x3FFU;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in float32
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
    }
    const std::uint32_t wide = exponent == 31 ? 0xFFU : exponent + 112;
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

/// Round to nearest even; overflow gives infinity.
constexpr std::uint16_t float_to_float16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U);
    if (magnitude >= 0x477FF000U)
        return static_cast<std::uint16_t>(sign | 0x7C00U);  // rounds to >= 65520
    if (magnitude < 0x38800000U) {  // below 2^-14: adding 0.5 aligns the subnormal's unit with
                                    // float32's last bit
        const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
        return static_cast<std::uint16_t>(sign |
                                          (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000U));
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

/// n values of `type` at `from` to float32 at `to`; host memory.
void to_float(DType type, const void* from, float* to, Index n);
/// n float32 values to `type`, rounded to nearest even; host memory.
void from_float(DType type, const float* from, void* to, Index n);

}  // namespace clt
