// Kernels that count how often features are active.
#pragma once

#include "backend/cuda/runtime.hpp"

namespace clt::cuda {

/// row_start[rows + 1], value[entries], active[rows], fired[rows]
void count(const Index* row_start, const float* value, Index rows, Index* active, Index* fired,
           StreamHandle stream);
/// counts[parts, each], totals[parts]
void sum_parts(const Index* counts, Index parts, Index each, Index* totals, StreamHandle stream);
/// fired[rows], silence[rows]
void age(const Index* fired, Index rows, Index* silence, StreamHandle stream);

}  // namespace clt::cuda
