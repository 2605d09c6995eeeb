// The sparse heart of a step: candidates as the encoder's tiles yield them, and the active set they
// become, indexed by feature and by token. A "row" is a local feature: row = layer * F_p + feature,
// F_p = features a layer this rank owns; a token counts from the first token of the set.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "clt/memory/memory.hpp"

namespace clt {

/// Entries (row, token) with their pre-activation and ranking key, ascending by (row, token).
struct Candidates {
    Index size = 0;  // entries in use of every buffer below
    Buffer<std::int32_t> row;
    Buffer<std::int32_t> token;
    Buffer<float> pre;          // pre-activation
    Buffer<std::uint32_t> key;  // ordered_key(score); unused by relu and jumprelu
};

/// Order-preserving map from float to unsigned: a < b <=> ordered_key(a) < ordered_key(b) for all
/// numbers, with -0 == +0. NaN maps to 0, below every number.
inline std::uint32_t ordered_key(float value) {
    if (!(value == value)) return 0;
    const auto bits = std::bit_cast<std::uint32_t>(value + 0.0F);  // -0 becomes +0
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
/// Inverse of ordered_key on its range (0 gives -infinity).
inline float value_of_key(std::uint32_t key) {
    if (key <= 0x007FFFFFU) return -std::numeric_limits<float>::infinity();
    return std::bit_cast<float>((key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key);
}

/// Sparse activations of `tokens` tokens and `rows` local features, as CSR by row; the token-major
/// order is a permutation of the entries.
struct ActiveSet {
    Index rows = 0;
    Index tokens = 0;
    Index entries = 0;
    Buffer<Index> row_start;     // [rows + 1]
    Buffer<std::int32_t> token;  // [entries], ascending within a row
    Buffer<float> pre;           // [entries] pre-activation
    Buffer<float> value;         // [entries] activation (0: in jumprelu's gradient window only)
    Buffer<float> gradient;      // [entries] dL/dvalue, then dL/dpre
};

}  // namespace clt
