// 16 floats as one value, by the compilers' vector extension: one AVX-512 register, or as many
// smaller ones as the machine needs. For loops whose accumulators must stay in registers.
#pragma once

#include "clt/base/types.hpp"

// Only matters where vectors cross a function call; everything here is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace clt::cpu {

inline constexpr Index lanes = 16;
using Vec = float __attribute__((vector_size(lanes * sizeof(float))));
using UnalignedVec =
    float __attribute__((vector_size(lanes * sizeof(float)), aligned(alignof(float)), may_alias));

inline Vec load(const float* p) {
    return *reinterpret_cast<const UnalignedVec*>(p);
}
inline void store(float* p, Vec v) {
    *reinterpret_cast<UnalignedVec*>(p) = v;
}
/// Sum of the lanes, by halves.
inline float sum(Vec v) {
    const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                      __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace clt::cpu
