// Gradients of the activation functions and the tanh penalty, on the active set.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/elementwise.hpp"

namespace clt {

void CpuBackend::sparsity_penalty(float weight, float c, Span<const float> norms, ActiveSet& active,
                                  Span<float> coefficient, Span<double> total) {
    CLT_CHECK(norms.size() == active.rows && coefficient.size() == active.rows);
    const Index* row_start = raw(active.row_start.span());
    const float* value = raw(active.value.span());
    float* gradient = raw(active.gradient.span());
    const float* norm = raw(norms);
    float* factor = raw(coefficient);
    *raw(total) +=
        static_cast<double>(weight) * cpu::ordered_sum<double>(active.rows, [&](Index row) {
            const float scaled_norm = c * norm[row];
            double sum = 0;
            double slope_sum = 0;
            for (Index i = row_start[row]; i < row_start[row + 1]; ++i) {
                const TanhPenalty entry = tanh_penalty(scaled_norm, value[i]);
                sum += static_cast<double>(entry.value);
                slope_sum += static_cast<double>(entry.slope) * static_cast<double>(value[i]);
                gradient[i] += weight * scaled_norm * entry.slope;
            }
            factor[row] =
                norm[row] == 0 ? 0 : weight * c * static_cast<float>(slope_sum) / norm[row];
            return sum;
        });
}

void CpuBackend::activation_gradient(const CollectRule& rule, Span<const float> log_threshold,
                                     float bandwidth, ActiveSet& active, Span<float> bias_gradient,
                                     Span<float> threshold_gradient) {
    const bool thresholded = rule.activation == Activation::jumprelu;
    CLT_CHECK(bias_gradient.size() == active.rows);
    CLT_CHECK(!thresholded ||
              (log_threshold.size() == active.rows && threshold_gradient.size() == active.rows));
    const Index* row_start = raw(active.row_start.span());
    const float* pre = raw(active.pre.span());
    float* gradient = raw(active.gradient.span());
    const float* log_theta = raw(log_threshold);
    float* bias = raw(bias_gradient);
    float* threshold = raw(threshold_gradient);
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < active.rows; ++row) {
        const Index begin = row_start[row];
        const Index end = row_start[row + 1];
        if (thresholded) {
            const float theta = jumprelu_threshold(log_theta[row]);
            double sum = 0;
            for (Index i = begin; i < end; ++i) {
                if (in_window(pre[i], theta, rule.half_window))
                    sum += static_cast<double>(gradient[i] * (-pre[i] / bandwidth));
                if (!(pre[i] >= theta)) gradient[i] = 0;
            }
            threshold[row] = theta * static_cast<float>(sum);
        }
        double sum = 0;
        for (Index i = begin; i < end; ++i) sum += static_cast<double>(gradient[i]);
        bias[row] = static_cast<float>(sum);
    }
}

}  // namespace clt
