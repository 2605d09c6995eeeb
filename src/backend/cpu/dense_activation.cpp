// relu and jumprelu on whole tiles, for models so dense that matrix products beat the gathers.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/elementwise.hpp"

namespace clt {

using cpu::row_of;

namespace {

bool is_thresholded(const CollectRule& rule) {
    CLT_CHECK(rule.activation == Activation::jumprelu || rule.activation == Activation::relu,
              "only relu and jumprelu have a dense path");
    return rule.activation == Activation::jumprelu;
}

}  // namespace

void CpuBackend::activate(const CollectRule& rule, Span<const float> log_threshold,
                          Matrix<const float> pre, Matrix<float> value, Span<Index> active,
                          Span<Index> fired) {
    const bool thresholded = is_thresholded(rule);
    CLT_CHECK(value.rows == pre.rows && value.cols == pre.cols);
    CLT_CHECK(active.size() == fired.size());
    CLT_CHECK(active.empty() || active.size() == pre.rows);
    CLT_CHECK(!thresholded || log_threshold.size() == pre.rows);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t) {
        const float* p = row_of(pre, t);
        float* a = row_of(value, t);
        if (thresholded) {
            const float theta = jumprelu_threshold(raw(log_threshold)[t]);
            for (Index b = 0; b < pre.cols; ++b) a[b] = jumprelu(p[b], theta);
        } else {
            for (Index b = 0; b < pre.cols; ++b) a[b] = p[b] > 0 ? p[b] : 0.0F;
        }
        if (active.empty()) continue;
        std::int32_t actives = 0;
        std::int32_t fires = 0;
        for (Index b = 0; b < pre.cols; ++b) {
            actives += a[b] != 0 ? 1 : 0;
            fires += a[b] > fired_above ? 1 : 0;
        }
        raw(active)[t] += actives;
        raw(fired)[t] += fires;
    }
}

void CpuBackend::count_kept(const CollectRule& rule, Span<const float> log_threshold,
                            Matrix<const float> pre, Span<Index> count) {
    const bool thresholded = is_thresholded(rule);
    CLT_CHECK(!thresholded || log_threshold.size() == pre.rows);
    *raw(count) += cpu::ordered_sum<Index>(pre.rows, [&](Index t) -> Index {
        const float* p = row_of(pre, t);
        std::int32_t kept = 0;
        if (thresholded) {
            const float theta = jumprelu_threshold(raw(log_threshold)[t]);
            for (Index b = 0; b < pre.cols; ++b)
                kept += ((p[b] >= theta) | in_window(p[b], theta, rule.half_window)) ? 1 : 0;
        } else {
            for (Index b = 0; b < pre.cols; ++b) kept += p[b] > 0 ? 1 : 0;
        }
        return kept;
    });
}

void CpuBackend::sparsity_penalty_dense(float weight, float c, Span<const float> norms,
                                        Matrix<const float> value, Matrix<float> gradient,
                                        Span<float> coefficient, Span<double> total) {
    CLT_CHECK(norms.size() == value.rows && coefficient.size() == value.rows);
    CLT_CHECK(gradient.rows == value.rows && gradient.cols == value.cols);
    const float* norm = raw(norms);
    *raw(total) += static_cast<double>(weight) * cpu::ordered_sum<double>(value.rows, [&](Index t) {
                       const float scaled_norm = c * norm[t];
                       const float* a = row_of(value, t);
                       float* g = row_of(gradient, t);
                       double sum = 0;
                       double slope_sum = 0;
                       for (Index b = 0; b < value.cols; ++b) {
                           const TanhPenalty entry = tanh_penalty(scaled_norm, a[b]);
                           sum += static_cast<double>(entry.value);
                           slope_sum +=
                               static_cast<double>(entry.slope) * static_cast<double>(a[b]);
                           g[b] += weight * scaled_norm * entry.slope;
                       }
                       raw(coefficient)[t] =
                           norm[t] == 0 ? 0 : weight * c * static_cast<float>(slope_sum) / norm[t];
                       return sum;
                   });
}

void CpuBackend::activation_gradient_dense(const CollectRule& rule, Span<const float> log_threshold,
                                           float bandwidth, Matrix<const float> pre,
                                           Matrix<float> gradient, Span<float> bias_gradient,
                                           Span<float> threshold_gradient) {
    const bool thresholded = is_thresholded(rule);
    CLT_CHECK(gradient.rows == pre.rows && gradient.cols == pre.cols);
    CLT_CHECK(bias_gradient.size() == pre.rows);
    CLT_CHECK(!thresholded ||
              (log_threshold.size() == pre.rows && threshold_gradient.size() == pre.rows));
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t) {
        const float* p = row_of(pre, t);
        float* g = row_of(gradient, t);
        double bias = 0;
        if (thresholded) {
            const float theta = jumprelu_threshold(raw(log_threshold)[t]);
            double threshold = 0;
#pragma omp simd reduction(+ : bias, threshold)
            for (Index b = 0; b < pre.cols; ++b) {
                const float through = g[b] * (-p[b] / bandwidth);
                threshold +=
                    in_window(p[b], theta, rule.half_window) ? static_cast<double>(through) : 0.0;
                g[b] = p[b] >= theta ? g[b] : 0.0F;
                bias += static_cast<double>(g[b]);
            }
            raw(threshold_gradient)[t] = theta * static_cast<float>(threshold);
        } else {
#pragma omp simd reduction(+ : bias)
            for (Index b = 0; b < pre.cols; ++b) {
                g[b] = p[b] > 0 ? g[b] : 0.0F;
                bias += static_cast<double>(g[b]);
            }
        }
        raw(bias_gradient)[t] = static_cast<float>(bias);
    }
}

void CpuBackend::preactivation_gradient(float weight, Matrix<const float> pre,
                                        Matrix<float> gradient, Span<float> bias_gradient) {
    CLT_CHECK(gradient.rows == pre.rows && gradient.cols == pre.cols);
    CLT_CHECK(bias_gradient.empty() || bias_gradient.size() == pre.rows);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t) {
        const float* p = row_of(pre, t);
        float* g = row_of(gradient, t);
        std::int32_t negative = 0;
        for (Index b = 0; b < pre.cols; ++b) {
            g[b] -= p[b] < 0 ? weight : 0.0F;
            negative += p[b] < 0 ? 1 : 0;
        }
        if (!bias_gradient.empty()) raw(bias_gradient)[t] -= weight * static_cast<float>(negative);
    }
}

void CpuBackend::scatter_gradient(const ActiveSet& active, Index first_row,
                                  Matrix<float> gradient) {
    CLT_CHECK(gradient.cols == active.tokens && first_row + gradient.rows <= active.rows);
    const Index* row_start = raw(active.row_start.span()) + first_row;
    const std::int32_t* token = raw(active.token.span());
    const float* from = raw(active.gradient.span());
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < gradient.rows; ++t) {
        float* g = row_of(gradient, t);
        std::fill_n(g, gradient.cols, 0.0F);
        for (Index i = row_start[t]; i < row_start[t + 1]; ++i) g[token[i]] = from[i];
    }
}

}  // namespace clt
