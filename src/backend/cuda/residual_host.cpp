// The residual, its loss and its gradient, and the sums that evaluation keeps of them.
#include "backend/cuda/cuda_backend.hpp"
#include "backend/cuda/residual.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

void CudaBackend::residual(Matrix<float> partial, Matrix<const float> target,
                           Span<const float> bias, Span<const float> scale, Index batch_tokens,
                           Index layers, Matrix<float> gradient, Span<double> squared_error) {
    const Index cols = partial.cols;
    CLT_CHECK(bias.size() == cols && scale.size() == cols && cols % layers == 0);
    CLT_CHECK(target.rows == partial.rows && target.cols == cols);
    CLT_CHECK(gradient.rows == partial.rows && gradient.cols == cols);
    CLT_CHECK(squared_error.size() == layers);
    cuda::Residual r;
    r.error = raw(partial);
    r.error_stride = partial.stride;
    r.target = raw(target);
    r.target_stride = target.stride;
    r.bias = raw(bias);
    r.scale = raw(scale);
    r.gradient = raw(gradient);
    r.gradient_stride = gradient.stride;
    r.tokens = partial.rows;
    r.layers = layers;
    r.d = cols / layers;
    r.factor =
        static_cast<float>(2.0 / (static_cast<double>(batch_tokens) * static_cast<double>(r.d)));
    r.squared_error = raw(squared_error);
    cuda::form_residual(r, scratch<double>(cuda::residual_scratch(r)), stream());
}

void CudaBackend::accumulate(Matrix<const float> error, Matrix<const float> target,
                             ColumnSums& sums) {
    const Index cols = error.cols;
    CLT_CHECK(target.rows == error.rows && target.cols == cols);
    cuda::EvaluationSums s;
    s.error = raw(error);
    s.error_stride = error.stride;
    s.target = raw(target);
    s.target_stride = target.stride;
    s.tokens = error.rows;
    s.cols = cols;
    double** to = s.sums;
    for (Buffer<double>* sum :
         {&sums.target, &sums.target_squared, &sums.error, &sums.error_squared}) {
        CLT_CHECK(sum->size() == cols);
        *to++ = raw(sum->span());
    }
    cuda::add_evaluation_sums(s, scratch<double>(cuda::evaluation_scratch(s)), stream());
}

}  // namespace clt
