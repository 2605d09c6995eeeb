// Launchers of the gradients of activation functions on the active set; their meaning is on the
// page of backend.hpp.
#pragma once

#include "clt/backend/plain.hpp"

using StreamHandle = struct CUstream_st*;

namespace clt::cuda {

/// The active set by row.
struct ActiveRows {
    Index rows = 0;
    const Index* row_start = nullptr;  // [rows + 1]
    const float* pre = nullptr;        // [entries]
    const float* value = nullptr;      // [entries]
    float* gradient = nullptr;         // [entries]
};

/// Doubles of scratch of sparsity_penalty().
Index sparsity_penalty_scratch(Index rows);
/// norms, coefficient: [rows]; sum[1]
void sparsity_penalty(float weight, float c, const float* norms, const ActiveRows& active,
                      float* coefficient, double* scratch, double* sum, StreamHandle stream);

/// log_threshold and threshold_gradient [rows], jumprelu only; bias_gradient[rows]
void activation_gradient(const CollectRule& rule, const float* log_threshold, float bandwidth,
                         const ActiveRows& active, float* bias_gradient, float* threshold_gradient,
                         StreamHandle stream);

}  // namespace clt::cuda
