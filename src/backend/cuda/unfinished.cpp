// Placeholders of kernels that are still being written; weak, so that the real ones win.
#include "backend/cuda/cuda_backend.hpp"

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define UNFINISHED __attribute__((weak))

namespace clt {
UNFINISHED void CudaBackend::gemm(bool transpose_a, bool transpose_b, float alpha,
                                  Matrix<const float> a, Matrix<const float> b, float beta,
                                  Matrix<float> c) {
    CLT_CHECK(false, "gemm is not written yet");
}
UNFINISHED void CudaBackend::round(Matrix<const float> from, Matrix<Bfloat16> to) {
    CLT_CHECK(false, "round is not written yet");
}
UNFINISHED void CudaBackend::encode(const EncoderOperand& x, const EncoderOperand& weight,
                                    Span<const float> bias, Matrix<float> pre) {
    CLT_CHECK(false, "encode is not written yet");
}
UNFINISHED void CudaBackend::tile_sums(Matrix<const float> pre, Span<double> sums) {
    CLT_CHECK(false, "tile_sums is not written yet");
}
UNFINISHED void CudaBackend::negative_sum(Matrix<const float> pre, Span<double> sum) {
    CLT_CHECK(false, "negative_sum is not written yet");
}
UNFINISHED void CudaBackend::collect(const CollectRule& rule, Matrix<const float> pre,
                                     Index first_row, Span<const double> sums, Index sum_tokens,
                                     Span<const float> bound, Span<const float> log_threshold,
                                     Candidates& out) {
    CLT_CHECK(false, "collect is not written yet");
}
UNFINISHED void CudaBackend::count_digits(const Candidates& candidates, const Cut& cut, int shift,
                                          int bits, Span<Index> counts) {
    CLT_CHECK(false, "count_digits is not written yet");
}
UNFINISHED void CudaBackend::count_position_digits(const Candidates& candidates,
                                                   const PositionMap& map, const Cut& cut,
                                                   int shift, int bits, Span<Index> counts) {
    CLT_CHECK(false, "count_position_digits is not written yet");
}
UNFINISHED void CudaBackend::choose_digit(Span<const Index> counts, int shift, int bits,
                                          bool positions, Cut& cut) {
    CLT_CHECK(false, "choose_digit is not written yet");
}
UNFINISHED void CudaBackend::keep(const PositionMap& map, const Cut& cut, Candidates& candidates) {
    CLT_CHECK(false, "keep is not written yet");
}
UNFINISHED void CudaBackend::raise_bound(const Cut& cut, Span<float> bound) {
    CLT_CHECK(false, "raise_bound is not written yet");
}
UNFINISHED void CudaBackend::index(const CollectRule& rule, Span<const float> log_threshold,
                                   Index rows, Index tokens, const Candidates& candidates,
                                   ActiveSet& out) {
    CLT_CHECK(false, "index is not written yet");
}
UNFINISHED void CudaBackend::merge(Span<const Index> row_starts,
                                   std::span<const Index> token_starts,
                                   std::span<const Index> part_entries,
                                   Span<const std::int32_t> token, Span<const float> pre,
                                   Span<const float> value, Index rows, Index tokens,
                                   ActiveSet& out) {
    CLT_CHECK(false, "merge is not written yet");
}
UNFINISHED void CudaBackend::decode(const ActiveSet& active,
                                    std::span<const Matrix<const float>> decoder,
                                    Matrix<float> out) {
    CLT_CHECK(false, "decode is not written yet");
}
UNFINISHED void CudaBackend::residual(Matrix<float> partial, Matrix<const float> target,
                                      Span<const float> bias, Span<const float> scale,
                                      Index batch_tokens, Index layers, Matrix<float> gradient,
                                      Span<double> squared_error) {
    CLT_CHECK(false, "residual is not written yet");
}
UNFINISHED void CudaBackend::accumulate(Matrix<const float> error, Matrix<const float> target,
                                        ColumnSums& sums) {
    CLT_CHECK(false, "accumulate is not written yet");
}
UNFINISHED void CudaBackend::column_sums(Matrix<const float> m, Span<float> out) {
    CLT_CHECK(false, "column_sums is not written yet");
}
UNFINISHED void CudaBackend::row_norms(Matrix<const float> m, Span<float> norms) {
    CLT_CHECK(false, "row_norms is not written yet");
}
UNFINISHED void CudaBackend::sparsity_penalty(float weight, float c, Span<const float> norms,
                                              ActiveSet& active, Span<float> coefficient,
                                              Span<double> sum) {
    CLT_CHECK(false, "sparsity_penalty is not written yet");
}
UNFINISHED void CudaBackend::decoder_rows(ActiveSet& active, Index layer, Index features,
                                          Matrix<const float> gradient,
                                          Span<const float> coefficient, bool activations,
                                          const AdamStep* adam, ParamRows rows,
                                          Span<double> squares) {
    CLT_CHECK(false, "decoder_rows is not written yet");
}
UNFINISHED void CudaBackend::activation_gradient(const CollectRule& rule,
                                                 Span<const float> log_threshold, float bandwidth,
                                                 ActiveSet& active, Span<float> bias_gradient,
                                                 Span<float> threshold_gradient) {
    CLT_CHECK(false, "activation_gradient is not written yet");
}
UNFINISHED void CudaBackend::encoder_rows(const ActiveSet& active, Index layer, Index features,
                                          Matrix<const float> x, const AdamStep* adam,
                                          ParamRows rows, Span<double> squares) {
    CLT_CHECK(false, "encoder_rows is not written yet");
}
UNFINISHED void CudaBackend::activate(const CollectRule& rule, Span<const float> log_threshold,
                                      Matrix<const float> pre, Matrix<float> value,
                                      Span<Index> active, Span<Index> fired) {
    CLT_CHECK(false, "activate is not written yet");
}
UNFINISHED void CudaBackend::count_kept(const CollectRule& rule, Span<const float> log_threshold,
                                        Matrix<const float> pre, Span<Index> count) {
    CLT_CHECK(false, "count_kept is not written yet");
}
UNFINISHED void CudaBackend::sparsity_penalty_dense(float weight, float c, Span<const float> norms,
                                                    Matrix<const float> value,
                                                    Matrix<float> gradient, Span<float> coefficient,
                                                    Span<double> sum) {
    CLT_CHECK(false, "sparsity_penalty_dense is not written yet");
}
UNFINISHED void CudaBackend::activation_gradient_dense(const CollectRule& rule,
                                                       Span<const float> log_threshold,
                                                       float bandwidth, Matrix<const float> pre,
                                                       Matrix<float> gradient,
                                                       Span<float> bias_gradient,
                                                       Span<float> threshold_gradient) {
    CLT_CHECK(false, "activation_gradient_dense is not written yet");
}
UNFINISHED void CudaBackend::preactivation_gradient(float weight, Matrix<const float> pre,
                                                    Matrix<float> gradient,
                                                    Span<float> bias_gradient) {
    CLT_CHECK(false, "preactivation_gradient is not written yet");
}
UNFINISHED void CudaBackend::scatter_gradient(const ActiveSet& active, Index first_row,
                                              Matrix<float> gradient) {
    CLT_CHECK(false, "scatter_gradient is not written yet");
}
UNFINISHED void CudaBackend::add_scaled_rows(Span<const float> coefficient,
                                             Matrix<const float> value, Matrix<float> g) {
    CLT_CHECK(false, "add_scaled_rows is not written yet");
}
UNFINISHED void CudaBackend::squared_norm(Matrix<const float> m, Span<double> sum) {
    CLT_CHECK(false, "squared_norm is not written yet");
}
UNFINISHED void CudaBackend::adam(const AdamStep& step, Matrix<const float> g, ParamRows params) {
    CLT_CHECK(false, "adam is not written yet");
}
UNFINISHED void CudaBackend::count(const ActiveSet& active, Span<Index> active_tokens,
                                   Span<Index> fired_tokens) {
    CLT_CHECK(false, "count is not written yet");
}
UNFINISHED void CudaBackend::sum_parts(Span<const Index> counts, Span<Index> totals) {
    CLT_CHECK(false, "sum_parts is not written yet");
}
UNFINISHED void CudaBackend::age(Span<const Index> fired_tokens, Span<Index> silence) {
    CLT_CHECK(false, "age is not written yet");
}
UNFINISHED void CudaBackend::embed(Span<const std::int32_t> ids, std::span<const Index> starts,
                                   Matrix<const float> token_rows,
                                   Matrix<const float> position_rows, Matrix<float> x) {
    CLT_CHECK(false, "embed is not written yet");
}
UNFINISHED void CudaBackend::layer_norm(Matrix<const float> x, Span<const float> gain,
                                        Span<const float> bias, float epsilon, Matrix<float> y) {
    CLT_CHECK(false, "layer_norm is not written yet");
}
UNFINISHED void CudaBackend::add_bias(Span<const float> bias, Matrix<float> m) {
    CLT_CHECK(false, "add_bias is not written yet");
}
UNFINISHED void CudaBackend::bias_activation(Span<const float> bias, MlpActivation activation,
                                             Matrix<float> m) {
    CLT_CHECK(false, "bias_activation is not written yet");
}
UNFINISHED void CudaBackend::add(Matrix<const float> from, Matrix<float> to) {
    CLT_CHECK(false, "add is not written yet");
}
UNFINISHED void CudaBackend::copy_matrix(Matrix<const float> from, Matrix<float> to) {
    CLT_CHECK(false, "copy_matrix is not written yet");
}
UNFINISHED void CudaBackend::attention(Matrix<const float> qkv, std::span<const Index> starts,
                                       Index heads, Matrix<float> out) {
    CLT_CHECK(false, "attention is not written yet");
}
UNFINISHED void CudaBackend::predict(Matrix<const float> logits, Span<const std::int32_t> targets,
                                     Span<float> logsumexp, Span<float> loss,
                                     Span<std::int32_t> argmax) {
    CLT_CHECK(false, "predict is not written yet");
}
}  // namespace clt
