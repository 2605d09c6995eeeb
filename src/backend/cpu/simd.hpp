// 16 floats as one value, by the compilers' vector extension: one AVX-512 register, or as many
// smaller ones as the machine needs. For loops whose accumulators must stay in registers.
#pragma once

#include <type_traits>

#include "clt/base/types.hpp"

// Only matters where vectors cross a function call; everything here is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace clt::cpu {

inline constexpr Index lanes = 16;
using Vec = float __attribute__((vector_size(lanes * sizeof(float))));
// The attributes stand at the name: clang drops an alignment given at the type.
using UnalignedVec __attribute__((aligned(alignof(float)), may_alias)) = Vec;
static_assert(alignof(UnalignedVec) == alignof(float));

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

/// Calls body(integral_constant<int, N>, at) for blocks [at, at + 16 N) from 0 on: N = 8 while they
/// fit, then 4, 2, 1. Returns where the rest, less than 16 long, begins. 8: weights and
/// accumulators of a block then fill half of the 32 registers.
template <class Body>
Index for_blocks(Index width, Body body) {
    Index at = 0;
    for (; at + 8 * lanes <= width; at += 8 * lanes) body(std::integral_constant<int, 8>{}, at);
    const auto smaller = [&]<int n>(std::integral_constant<int, n> size) {
        if (at + n * lanes > width) return;
        body(size, at);
        at += n * lanes;
    };
    smaller(std::integral_constant<int, 4>{});
    smaller(std::integral_constant<int, 2>{});
    smaller(std::integral_constant<int, 1>{});
    return at;
}

}  // namespace clt::cpu
