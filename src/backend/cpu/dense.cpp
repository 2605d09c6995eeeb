// Dense products through a BLAS (CMake option CLT_BLAS), and loops over whole matrices.
#if CLT_USE_ONEDNN
#include <dnnl.h>
#else
#include <cblas.h>
#endif

#include <limits>

#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/shapes.hpp"

namespace clt {

using cpu::row_of;

namespace {

// C[m, n] = alpha op(A)[m, k] op(B)[k, n] + beta C, row-major; no extent is 0.
void sgemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, float alpha,
           const Matrix<const float>& a, const Matrix<const float>& b, float beta,
           const Matrix<float>& c) {
#if CLT_USE_ONEDNN
    const dnnl_status_t status =
        dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, raw(a),
                   a.stride, raw(b), b.stride, beta, raw(c), c.stride);
    if (status != dnnl_success)
        library_error("dnnl_sgemm", status, fmt::format("shape {} x {} x {}", m, n, k));
#else
    const auto as_int = [](Index i) {
        CLT_CHECK(i <= std::numeric_limits<int>::max(), "BLAS extent {}", i);
        return static_cast<int>(i);
    };
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
                transpose_b ? CblasTrans : CblasNoTrans, as_int(m), as_int(n), as_int(k), alpha,
                raw(a), as_int(a.stride), raw(b), as_int(b.stride), beta, raw(c), as_int(c.stride));
#endif
}

}  // namespace

void CpuBackend::gemm(bool transpose_a, bool transpose_b, float alpha, Matrix<const float> a,
                      Matrix<const float> b, float beta, Matrix<float> c) {
    const Index k = product_depth(transpose_a, transpose_b, a, b, c);
    if (c.rows == 0 || c.cols == 0) return;
    if (k == 0) {  // BLAS libraries differ on leading dimensions of empty operands
        for (Index i = 0; i < c.rows; ++i)
            for (Index j = 0; j < c.cols; ++j)
                row_of(c, i)[j] = beta == 0 ? 0 : beta * row_of(c, i)[j];
        return;
    }
    sgemm(transpose_a, transpose_b, c.rows, c.cols, k, alpha, a, b, beta, c);
}

void CpuBackend::column_sums(Matrix<const float> m, Span<float> out) {
    CLT_CHECK(out.size() == m.cols);
    constexpr Index width = 64;
    float* sums = raw(out);
#pragma omp parallel for schedule(static)
    for (Index first = 0; first < m.cols; first += width) {
        const Index n = std::min(width, m.cols - first);
        double partial[width] = {};
        for (Index i = 0; i < m.rows; ++i) {
            const float* x = row_of(m, i) + first;
            for (Index j = 0; j < n; ++j) partial[j] += static_cast<double>(x[j]);
        }
        for (Index j = 0; j < n; ++j) sums[first + j] = static_cast<float>(partial[j]);
    }
}

void CpuBackend::row_norms(Matrix<const float> m, Span<float> norms) {
    CLT_CHECK(norms.size() == m.rows);
    float* out = raw(norms);
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < m.rows; ++i)
        out[i] = static_cast<float>(std::sqrt(cpu::sum_of_squares(row_of(m, i), m.cols)));
}

void CpuBackend::add_scaled_rows(Span<const float> coefficient, Matrix<const float> value,
                                 Matrix<float> g) {
    CLT_CHECK(coefficient.size() == g.rows && value.rows == g.rows && value.cols == g.cols);
    const float* factor = raw(coefficient);
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < g.rows; ++i) {
        const float* from = row_of(value, i);
        float* to = row_of(g, i);
        for (Index j = 0; j < g.cols; ++j) to[j] += factor[i] * from[j];
    }
}

void CpuBackend::squared_norm(Matrix<const float> m, Span<double> sum) {
    *raw(sum) += cpu::ordered_sum<double>(
        m.rows, [&](Index i) { return cpu::sum_of_squares(row_of(m, i), m.cols); });
}

void CpuBackend::adam(const AdamStep& step, Matrix<const float> g, ParamRows params) {
    CLT_CHECK(params.value.rows == g.rows && params.value.cols == g.cols);
    int broken = 0;
#pragma omp parallel for schedule(static) reduction(| : broken)
    for (Index i = 0; i < g.rows; ++i) {
        const float* gradient = row_of(g, i);
        float* p = row_of(params.value, i);
        float* m = row_of(params.moment1, i);
        float* v = row_of(params.moment2, i);
#pragma omp simd reduction(| : broken)
        for (Index j = 0; j < g.cols; ++j)
            broken |= adam_update(step, gradient[j], p[j], m[j], v[j]) ? 0 : 1;
    }
    if (broken != 0) cpu::raise(params.not_finite);
}

}  // namespace clt
