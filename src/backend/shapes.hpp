// Checks and views of shapes that every backend makes of its arguments.
#pragma once

#include "clt/backend/backend.hpp"

namespace clt {

/// The k of C[m, n] = op(A)[m, k] op(B)[k, n], whose shapes must fit.
inline Index product_depth(bool transpose_a, bool transpose_b, const Matrix<const float>& a,
                           const Matrix<const float>& b, const Matrix<float>& c) {
    const Index k = transpose_a ? a.rows : a.cols;
    CLT_CHECK((transpose_a ? a.cols : a.rows) == c.rows);
    CLT_CHECK((transpose_b ? b.cols : b.rows) == k);
    CLT_CHECK((transpose_b ? b.rows : b.cols) == c.cols);
    return k;
}

/// What a decoder row of this width sees of G[B, L*d]: it ends with the last target, as G does.
inline Matrix<const float> targets_of(const Matrix<const float>& gradient, Index width) {
    CLT_CHECK(width <= gradient.cols);
    return columns_of(gradient, gradient.cols - width, width);
}

}  // namespace clt
