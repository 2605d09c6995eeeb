// Kernels that make active sets. R rows, n entries.
#pragma once

#include <cstdint>

#include "backend/cuda/runtime.hpp"
#include "clt/backend/plain.hpp"

namespace clt::cuda {

/// The arrays of an active set.
struct ActiveArrays {
    Index* row_start = nullptr;     // [R + 1]
    std::int32_t* token = nullptr;  // [n]
    float* pre = nullptr;           // [n]
    float* value = nullptr;         // [n]
    float* gradient = nullptr;      // [n]
};

/// Candidates row, token, pre [n], ascending by row. log_threshold [R]: jumprelu, else null.
void index(const std::int32_t* row, const std::int32_t* token, const float* pre, Index n,
           const float* log_threshold, Index rows, const ActiveArrays& out, StreamHandle stream);

/// The parts of merge(), their entries one part after the other.
struct Parts {
    Index count = 0;                      // P
    const Index* row_starts = nullptr;    // [P, R + 1]
    const Index* token_starts = nullptr;  // [P]
    const Index* entry_starts = nullptr;  // [P]
    const std::int32_t* token = nullptr;
    const float* pre = nullptr;
    const float* value = nullptr;
};
void merge(const Parts& parts, Index rows, const ActiveArrays& out, StreamHandle stream);

}  // namespace clt::cuda
