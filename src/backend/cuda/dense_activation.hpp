// Launchers of relu and jumprelu on whole tiles; their meaning is on the page of backend.hpp.
// T features, B tokens; tiles are [T, B]; log_threshold [T] for jumprelu only.
#pragma once

#include "backend/cuda/device_matrix.hpp"
#include "clt/backend/plain.hpp"

using StreamHandle = struct CUstream_st*;

namespace clt::cuda {

/// active, fired: [T]
void activate(const CollectRule& rule, const float* log_threshold, DeviceMatrix<const float> pre,
              DeviceMatrix<float> value, Index* active, Index* fired, StreamHandle stream);

/// count[1]
void count_kept(const CollectRule& rule, const float* log_threshold, DeviceMatrix<const float> pre,
                Index* count, StreamHandle stream);

/// norms, coefficient: [T]; scratch[T]; sum[1]
void sparsity_penalty_dense(float weight, float c, const float* norms,
                            DeviceMatrix<const float> value, DeviceMatrix<float> gradient,
                            float* coefficient, double* scratch, double* sum, StreamHandle stream);

/// bias_gradient, threshold_gradient: [T]
void activation_gradient_dense(const CollectRule& rule, const float* log_threshold, float bandwidth,
                               DeviceMatrix<const float> pre, DeviceMatrix<float> gradient,
                               float* bias_gradient, float* threshold_gradient,
                               StreamHandle stream);

/// bias_gradient[T]
void preactivation_gradient(float weight, DeviceMatrix<const float> pre,
                            DeviceMatrix<float> gradient, float* bias_gradient,
                            StreamHandle stream);

/// row_start[T + 1] of the tile's first row on; token, from: [entries]
void scatter_gradient(const Index* row_start, const std::int32_t* token, const float* from,
                      DeviceMatrix<float> gradient, StreamHandle stream);

}  // namespace clt::cuda
