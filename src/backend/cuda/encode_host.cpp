// The encoder's tiles.
#include "backend/cuda/encode.hpp"

#include "backend/cuda/cuda_backend.hpp"
#include "clt/backend/cuda_sizes.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
using cuda::device_matrix;

Index CudaBackend::encode_tile(Index tokens, Index /*d_model*/) const {
    return cuda_encode_tile(tokens, device_.limits().l2_bytes);
}

void CudaBackend::round(Matrix<const float> from, Matrix<Bfloat16> to) {
    CLT_CHECK(from.rows == to.rows && from.cols == to.cols);
    cuda::round(device_matrix(from), cuda::device_bits(to), stream());
}

void CudaBackend::encode(const EncoderOperand& x, const EncoderOperand& weight,
                         Span<const float> bias, Matrix<float> pre) {
    CLT_CHECK(bias.size() == weight.value.rows && pre.rows == weight.value.rows &&
              pre.cols == x.value.rows && pre.stride == pre.cols);
    CLT_CHECK(x.value.cols == weight.value.cols);
    if (pre.rows == 0 || pre.cols == 0) return;
    cuda::EncoderProduct product;
    product.precision = precision_;
    product.tile = pre.rows;
    product.tokens = pre.cols;
    product.width = x.value.cols;
    product.bias = raw(bias);
    product.pre = raw(pre);
    if (precision_ == cuda::Precision::bfloat16) {
        CLT_CHECK(weight.rounded.rows == weight.value.rows && x.rounded.rows == x.value.rows);
        product.weight = raw(weight.rounded);
        product.weight_stride = weight.rounded.stride;
        product.x = raw(x.rounded);
        product.x_stride = x.rounded.stride;
    } else {
        product.weight = raw(weight.value);
        product.weight_stride = weight.value.stride;
        product.x = raw(x.value);
        product.x_stride = x.value.stride;
    }
    cuda::encoder_product(device_.blas(), product);
}

void CudaBackend::tile_sums(Matrix<const float> pre, Span<double> sums) {
    CLT_CHECK(sums.size() == 2 * pre.rows);
    cuda::tile_sums(device_matrix(pre), raw(sums), stream());
}

void CudaBackend::negative_sum(Matrix<const float> pre, Span<double> sum) {
    CLT_CHECK(sum.size() == 1);
    cuda::negative_sum(device_matrix(pre), scratch<double>(pre.rows), raw(sum), stream());
}

void CudaBackend::collect(const CollectRule& rule, Matrix<const float> pre, Index first_row,
                          Span<const double> sums, Index sum_tokens, Span<const float> bound,
                          Span<const float> log_threshold, Candidates& out) {
    const bool ranked = is_ranked(rule.activation);
    CLT_CHECK(rule.activation != Activation::jumprelu || log_threshold.size() == pre.rows);
    CLT_CHECK(!ranked || bound.size() == (rule.activation == Activation::topk ? pre.cols : 1));
    CLT_CHECK(!ranked || !rule.zscore || sums.size() == 2 * pre.rows);
    CLT_CHECK(!ranked || out.key.size() >= out.capacity());
    const cuda::DeviceMatrix<const float> tile = device_matrix(pre);
    const cuda::CollectBounds bounds{raw(sums), sum_tokens, raw(bound), raw(log_threshold)};
    const cuda::CandidateArrays to{raw(out.size.span()), raw(out.row.span()), raw(out.token.span()),
                                   raw(out.pre.span()),  raw(out.key.span()), out.capacity()};
    cuda::collect(rule, tile, first_row, bounds, scratch<std::uint32_t>(cuda::collect_words(tile)),
                  scratch2<Index>(1), to, stream());
}

}  // namespace clt
