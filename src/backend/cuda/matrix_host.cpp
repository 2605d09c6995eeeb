// Loops over whole matrices.
#include "backend/cuda/matrix.hpp"

#include "backend/cuda/cuda_backend.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

using cuda::device_matrix;

void CudaBackend::column_sums(Matrix<const float> m, Span<float> out) {
    CLT_CHECK(out.size() == m.cols);
    cuda::column_sums(device_matrix(m), scratch<double>(cuda::column_sums_scratch(m.rows, m.cols)),
                      raw(out), stream());
}

void CudaBackend::row_norms(Matrix<const float> m, Span<float> norms) {
    CLT_CHECK(norms.size() == m.rows);
    cuda::row_norms(device_matrix(m), raw(norms), stream());
}

void CudaBackend::add_scaled_rows(Span<const float> coefficient, Matrix<const float> value,
                                  Matrix<float> g) {
    CLT_CHECK(coefficient.size() == g.rows && value.rows == g.rows && value.cols == g.cols);
    cuda::add_scaled_rows(raw(coefficient), device_matrix(value), device_matrix(g), stream());
}

void CudaBackend::squared_norm(Matrix<const float> m, Span<double> sum) {
    cuda::squared_norm(device_matrix(m),
                       scratch<double>(cuda::squared_norm_scratch(m.rows, m.cols)), raw(sum),
                       stream());
}

void CudaBackend::adam(const AdamStep& step, Matrix<const float> g, ParamRows params) {
    const auto is_shaped = [&](const auto& m) { return m.rows == g.rows && m.cols == g.cols; };
    CLT_CHECK(is_shaped(params.value) && is_shaped(params.moment1) && is_shaped(params.moment2));
    CLT_CHECK(params.rounded.elements.empty() || is_shaped(params.rounded));
    cuda::adam(step, device_matrix(g), device_matrix(params.value), device_matrix(params.moment1),
               device_matrix(params.moment2), cuda::device_bits(params.rounded),
               params.not_finite.empty() ? nullptr : raw(params.not_finite), stream());
}

}  // namespace clt
