// Parts of matrices and parameters, without copying.
#pragma once

#include "clt/backend/backend.hpp"

namespace clt {

/// Rows [first, first + n).
template <class T>
Matrix<T> rows_of(const Matrix<T>& m, Index first, Index n) {
    if (n == 0 || m.elements.empty()) return {m.elements.subspan(0, 0), 0, m.cols, m.stride};
    return {m.elements.subspan(first * m.stride, (n - 1) * m.stride + m.cols), n, m.cols, m.stride};
}
inline ParamRows rows_of(const ParamRows& array, Index first, Index n) {
    return {rows_of(array.value, first, n), rows_of(array.moment1, first, n),
            rows_of(array.moment2, first, n), rows_of(array.rounded, first, n)};
}
inline EncoderOperand rows_of(const EncoderOperand& x, Index first, Index n) {
    return {rows_of(x.value, first, n), rows_of(x.rounded, first, n)};
}

/// Columns [first, first + n).
template <class T>
Matrix<T> columns_of(const Matrix<T>& m, Index first, Index n) {
    if (m.rows == 0 || m.elements.empty()) return {m.elements.subspan(0, 0), 0, n, m.stride};
    return {m.elements.subspan(first, (m.rows - 1) * m.stride + n), m.rows, n, m.stride};
}
inline EncoderOperand columns_of(const EncoderOperand& x, Index first, Index n) {
    return {columns_of(x.value, first, n), columns_of(x.rounded, first, n)};
}

}  // namespace clt
