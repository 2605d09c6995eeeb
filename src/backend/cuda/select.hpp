// Kernels of the radix select. Candidates are arrays of `capacity` entries, of which min(size,
// capacity) are there; only the device knows size. G groups: 1, or one a token.
#pragma once

#include <cstdint>

#include "backend/cuda/encode.hpp"

namespace clt::cuda {

struct CutArrays {
    Index groups = 0;
    std::uint64_t* score = nullptr;     // [G]
    std::uint64_t* position = nullptr;  // [G]
    Index* remaining = nullptr;         // [G]
};

/// counts[G, 2^bits] += the digits of keys. multiprocessors: of the device.
void count_digits(const CandidateArrays& candidates, const CutArrays& cut, int shift, int bits,
                  Index* counts, int multiprocessors, StreamHandle stream);
void count_position_digits(const CandidateArrays& candidates, const PositionMap& map,
                           const CutArrays& cut, int shift, int bits, Index* counts,
                           int multiprocessors, StreamHandle stream);
/// chosen[G]: cut.score, or cut.position where `positions`.
void choose_digit(const Index* counts, int shift, int bits, bool positions, const CutArrays& cut,
                  StreamHandle stream);

/// Numbers that keep() needs as scratch.
Index keep_chunks(Index capacity);
/// What stays goes to `kept`, of the same capacity. chunk_starts[keep_chunks(capacity)] is scratch.
void keep(const CandidateArrays& candidates, const PositionMap& map, const CutArrays& cut,
          Index* chunk_starts, const CandidateArrays& kept, StreamHandle stream);

/// bound[G]
void raise_bound(const CutArrays& cut, float* bound, StreamHandle stream);

}  // namespace clt::cuda
