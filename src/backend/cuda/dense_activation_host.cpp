// relu and jumprelu on whole tiles.
#include "backend/cuda/dense_activation.hpp"

#include "backend/cuda/cuda_backend.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

using cuda::device_matrix;

namespace {

void check_rule(const CollectRule& rule, Span<const float> log_threshold, Index rows) {
    CLT_CHECK(rule.activation == Activation::jumprelu || rule.activation == Activation::relu,
              "only relu and jumprelu have a dense path");
    CLT_CHECK(rule.activation == Activation::relu || log_threshold.size() == rows);
}

}  // namespace

void CudaBackend::activate(const CollectRule& rule, Span<const float> log_threshold,
                           Matrix<const float> pre, Matrix<float> value, Span<Index> active,
                           Span<Index> fired) {
    check_rule(rule, log_threshold, pre.rows);
    CLT_CHECK(value.rows == pre.rows && value.cols == pre.cols);
    CLT_CHECK(active.size() == fired.size());
    CLT_CHECK(active.empty() || active.size() == pre.rows);
    cuda::activate(rule, raw(log_threshold), device_matrix(pre), device_matrix(value), raw(active),
                   raw(fired), stream());
}

void CudaBackend::count_kept(const CollectRule& rule, Span<const float> log_threshold,
                             Matrix<const float> pre, Span<Index> count) {
    check_rule(rule, log_threshold, pre.rows);
    cuda::count_kept(rule, raw(log_threshold), device_matrix(pre), raw(count), stream());
}

void CudaBackend::sparsity_penalty_dense(float weight, float c, Span<const float> norms,
                                         Matrix<const float> value, Matrix<float> gradient,
                                         Span<float> coefficient, Span<double> sum) {
    CLT_CHECK(norms.size() == value.rows && coefficient.size() == value.rows);
    CLT_CHECK(gradient.rows == value.rows && gradient.cols == value.cols);
    cuda::sparsity_penalty_dense(weight, c, raw(norms), device_matrix(value),
                                 device_matrix(gradient), raw(coefficient),
                                 scratch<double>(value.rows), raw(sum), stream());
}

void CudaBackend::activation_gradient_dense(const CollectRule& rule,
                                            Span<const float> log_threshold, float bandwidth,
                                            Matrix<const float> pre, Matrix<float> gradient,
                                            Span<float> bias_gradient,
                                            Span<float> threshold_gradient) {
    check_rule(rule, log_threshold, pre.rows);
    CLT_CHECK(gradient.rows == pre.rows && gradient.cols == pre.cols);
    CLT_CHECK(bias_gradient.size() == pre.rows);
    CLT_CHECK(rule.activation == Activation::relu || threshold_gradient.size() == pre.rows);
    cuda::activation_gradient_dense(rule, raw(log_threshold), bandwidth, device_matrix(pre),
                                    device_matrix(gradient), raw(bias_gradient),
                                    raw(threshold_gradient), stream());
}

void CudaBackend::preactivation_gradient(float weight, Matrix<const float> pre,
                                         Matrix<float> gradient, Span<float> bias_gradient) {
    CLT_CHECK(gradient.rows == pre.rows && gradient.cols == pre.cols);
    CLT_CHECK(bias_gradient.empty() || bias_gradient.size() == pre.rows);
    cuda::preactivation_gradient(weight, device_matrix(pre), device_matrix(gradient),
                                 raw(bias_gradient), stream());
}

void CudaBackend::scatter_gradient(const ActiveSet& active, Index first_row,
                                   Matrix<float> gradient) {
    CLT_CHECK(gradient.cols == active.tokens && first_row + gradient.rows <= active.rows);
    cuda::scatter_gradient(raw(active.row_start.span()) + first_row, raw(active.token.span()),
                           raw(active.gradient.span()), device_matrix(gradient), stream());
}

}  // namespace clt
