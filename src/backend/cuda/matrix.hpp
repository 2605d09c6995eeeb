// Launchers of the loops over whole matrices; their meaning is on the page of backend.hpp.
#pragma once

#include "backend/cuda/device_matrix.hpp"
#include "clt/backend/adam.hpp"

using StreamHandle = struct CUstream_st*;

namespace clt::cuda {

// X_scratch(): the doubles of scratch that X() needs for a matrix of this shape.

Index column_sums_scratch(Index rows, Index cols);
/// out[cols]
void column_sums(DeviceMatrix<const float> m, double* scratch, float* out, StreamHandle stream);

/// norms[rows]
void row_norms(DeviceMatrix<const float> m, float* norms, StreamHandle stream);

/// coefficient[rows]
void add_scaled_rows(const float* coefficient, DeviceMatrix<const float> value,
                     DeviceMatrix<float> g, StreamHandle stream);

Index squared_norm_scratch(Index rows, Index cols);
/// sum[1]
void squared_norm(DeviceMatrix<const float> m, double* scratch, double* sum, StreamHandle stream);

/// All of one shape; rounded holds bfloat16, or nothing (null); not_finite[1]: see ParamRows, may
/// be null.
void adam(const AdamStep& step, DeviceMatrix<const float> g, DeviceMatrix<float> value,
          DeviceMatrix<float> moment1, DeviceMatrix<float> moment2,
          DeviceMatrix<std::uint16_t> rounded, double* not_finite, StreamHandle stream);

}  // namespace clt::cuda
