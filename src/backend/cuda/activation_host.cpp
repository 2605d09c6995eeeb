// Gradients of the activation functions and the tanh penalty, on the active set.
#include "backend/cuda/activation.hpp"

#include "backend/cuda/cuda_backend.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

cuda::ActiveRows by_row(ActiveSet& active) {
    return {active.rows, raw(active.row_start.span()), raw(active.pre.span()),
            raw(active.value.span()), raw(active.gradient.span())};
}

}  // namespace

void CudaBackend::sparsity_penalty(float weight, float c, Span<const float> norms,
                                   ActiveSet& active, Span<float> coefficient, Span<double> sum) {
    CLT_CHECK(norms.size() == active.rows && coefficient.size() == active.rows);
    cuda::sparsity_penalty(weight, c, raw(norms), by_row(active), raw(coefficient),
                           scratch<double>(cuda::sparsity_penalty_scratch(active.rows)), raw(sum),
                           stream());
}

void CudaBackend::activation_gradient(const CollectRule& rule, Span<const float> log_threshold,
                                      float bandwidth, ActiveSet& active, Span<float> bias_gradient,
                                      Span<float> threshold_gradient) {
    CLT_CHECK(bias_gradient.size() == active.rows);
    CLT_CHECK(rule.activation != Activation::jumprelu ||
              (log_threshold.size() == active.rows && threshold_gradient.size() == active.rows));
    cuda::activation_gradient(rule, raw(log_threshold), bandwidth, by_row(active),
                              raw(bias_gradient), raw(threshold_gradient), stream());
}

}  // namespace clt
