#include "backend/cuda/cuda_backend.hpp"
#include "backend/shapes.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

void CudaBackend::gemm(bool transpose_a, bool transpose_b, float alpha, Matrix<const float> a,
                       Matrix<const float> b, float beta, Matrix<float> c) {
    const Index k = product_depth(transpose_a, transpose_b, a, b, c);
    if (c.rows == 0 || c.cols == 0) return;
    // bfloat16 is for the encoder alone: its rounded factors are kept.
    const cuda::Precision precision =
        precision_ == cuda::Precision::tf32 ? precision_ : cuda::Precision::float32;
    cuda::gemm(device_.blas(), {.transpose_a = transpose_a,
                                .transpose_b = transpose_b,
                                .m = c.rows,
                                .n = c.cols,
                                .k = k,
                                .alpha = alpha,
                                .beta = beta,
                                .a = raw(a),
                                .a_stride = a.stride,
                                .b = raw(b),
                                .b_stride = b.stride,
                                .c = raw(c),
                                .c_stride = c.stride,
                                .precision = precision});
}

}  // namespace clt
