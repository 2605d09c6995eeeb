// The sparse heart of a step: candidates as the encoder's tiles yield them, and the active set they
// become, indexed by feature and by token. A "row" is a local feature: row = layer * F_p + feature,
// F_p = features a layer this rank owns; a token counts from the first token of the set.
#pragma once

#include <cstdint>

#include "clt/memory/memory.hpp"

namespace clt {

/// Entries (row, token) with their pre-activation and ranking key, ascending by (row, token). How
/// many there are is known to the backend alone until the host asks (Backend::found).
struct Candidates {
    Buffer<Index> size;  // [1] entries found; those beyond the capacity were counted but not kept
    Buffer<std::int32_t> row;
    Buffer<std::int32_t> token;
    Buffer<float> pre;          // pre-activation
    Buffer<std::uint32_t> key;  // ordered_key(score); empty for relu and jumprelu

    Index capacity() const { return row.size(); }
};

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
