// Gradients of the activation functions and the tanh penalty, on the active set. A warp takes a
// row: most rows have a handful of entries, some one for every token.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/activation.hpp"

#include <algorithm>

#include "backend/cuda/reduce.hpp"
#include "backend/elementwise.hpp"

namespace clt::cuda {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_lanes;

// A warp takes every gridDim.x * warps-th row and reads its entries once; the block's sum goes to
// scratch.
__global__ void __launch_bounds__(threads)
    penalty_of_rows(float weight, float c, const float* norms, ActiveRows active,
                    float* coefficient, double* partials) {
    const int lane = lane_of_thread();
    double total = 0;
    for (Index row = Index{blockIdx.x} * warps + warp_of_thread(); row < active.rows;
         row += Index{gridDim.x} * warps) {
        const float norm = norms[row];
        const float scaled_norm = c * norm;
        const Index end = active.row_start[row + 1];
        double slope_sum = 0;
        for (Index i = active.row_start[row] + lane; i < end; i += warp_lanes) {
            const float value = active.value[i];
            const TanhPenalty entry = tanh_penalty(scaled_norm, value);
            total += static_cast<double>(entry.value);
            slope_sum += static_cast<double>(entry.slope) * static_cast<double>(value);
            active.gradient[i] += weight * scaled_norm * entry.slope;
        }
        slope_sum = warp_sum(slope_sum);
        if (lane == 0)
            coefficient[row] = norm == 0 ? 0 : weight * c * static_cast<float>(slope_sum) / norm;
    }
    total = block_sum<threads>(total);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// A warp takes a row and reads its entries once.
template <bool thresholded>
__global__ void __launch_bounds__(threads)
    gradient_of_rows(const float* log_threshold, float half_window, float bandwidth,
                     ActiveRows active, float* bias_gradient, float* threshold_gradient) {
    const Index row = Index{blockIdx.x} * warps + warp_of_thread();
    if (row >= active.rows) return;
    const int lane = lane_of_thread();
    const Index end = active.row_start[row + 1];
    const float theta = thresholded ? jumprelu_threshold(log_threshold[row]) : 0;
    double bias = 0;
    double threshold = 0;
    for (Index i = active.row_start[row] + lane; i < end; i += warp_lanes) {
        float gradient = active.gradient[i];
        if constexpr (thresholded) {
            const float p = active.pre[i];
            if (in_window(p, theta, half_window))
                threshold += static_cast<double>(gradient * (-p / bandwidth));
            if (!(p >= theta)) active.gradient[i] = gradient = 0;
        }
        bias += static_cast<double>(gradient);
    }
    bias = warp_sum(bias);
    if (lane == 0) bias_gradient[row] = static_cast<float>(bias);
    if constexpr (thresholded) {
        threshold = warp_sum(threshold);
        if (lane == 0) threshold_gradient[row] = theta * static_cast<float>(threshold);
    }
}

}  // namespace

Index sparsity_penalty_scratch(Index rows) {
    return std::min(most_partials, (rows + warps - 1) / warps);
}

void sparsity_penalty(float weight, float c, const float* norms, const ActiveRows& active,
                      float* coefficient, double* scratch, double* sum, StreamHandle stream) {
    const Index blocks = sparsity_penalty_scratch(active.rows);
    CLT_LAUNCH(penalty_of_rows, dim3(static_cast<unsigned>(blocks)), dim3(threads), stream, weight,
               c, norms, active, coefficient, scratch);
    add_partials(scratch, blocks, static_cast<double>(weight), sum, stream);
}

void activation_gradient(const CollectRule& rule, const float* log_threshold, float bandwidth,
                         const ActiveRows& active, float* bias_gradient, float* threshold_gradient,
                         StreamHandle stream) {
    const dim3 grid(blocks_for(active.rows, warps));
    if (rule.activation == Activation::jumprelu)
        CLT_LAUNCH(gradient_of_rows<true>, grid, dim3(threads), stream, log_threshold,
                   rule.half_window, bandwidth, active, bias_gradient, threshold_gradient);
    else
        CLT_LAUNCH(gradient_of_rows<false>, grid, dim3(threads), stream, log_threshold,
                   rule.half_window, bandwidth, active, bias_gradient, threshold_gradient);
}

}  // namespace clt::cuda
