// The residual and evaluation's sums, with plain pointers.
#pragma once

#include "backend/cuda/runtime.hpp"

namespace clt::cuda {

/// As Backend::residual.
struct Residual {
    float* error = nullptr;  // [tokens, layers * d]; holds the partial reconstruction before
    Index error_stride = 0;
    const float* target = nullptr;  // [tokens, layers * d]
    Index target_stride = 0;
    const float* bias = nullptr;   // [layers * d]
    const float* scale = nullptr;  // [layers * d]
    float* gradient = nullptr;     // [tokens, layers * d]
    Index gradient_stride = 0;
    Index tokens = 0;
    Index layers = 0;
    Index d = 0;
    float factor = 0;                 // 2 / (batch tokens * d)
    double* squared_error = nullptr;  // [layers]
};
Index residual_scratch(const Residual& residual);  // doubles
void form_residual(const Residual& residual, double* scratch, StreamHandle stream);

/// Sums over the tokens of target, target^2, error, error^2, each [cols], added to sums[0 .. 3].
struct EvaluationSums {
    const float* error = nullptr;  // [tokens, cols]
    Index error_stride = 0;
    const float* target = nullptr;  // [tokens, cols]
    Index target_stride = 0;
    Index tokens = 0;
    Index cols = 0;
    double* sums[4] = {};
};
Index evaluation_scratch(const EvaluationSums& sums);  // doubles
void add_evaluation_sums(const EvaluationSums& sums, double* scratch, StreamHandle stream);

}  // namespace clt::cuda
