// Matrix<T> as kernels see it: a plain pointer and its sizes, without our error header.
#pragma once

#include <cstdint>

#include "clt/base/types.hpp"

namespace clt::cuda {

/// A row-major rows x cols view of device memory; rows are `stride` elements apart.
template <class T>
struct DeviceMatrix {
    T* data = nullptr;
    Index rows = 0;
    Index cols = 0;
    Index stride = 0;
};

/// Whether nothing lies between the rows, so that they are one row of rows * cols elements.
template <class T>
bool is_one_row(const DeviceMatrix<T>& m) {
    return m.rows <= 1 || m.stride == m.cols;
}
template <class T>
DeviceMatrix<T> as_one_row(const DeviceMatrix<T>& m) {
    return {m.data, m.rows == 0 ? 0 : 1, m.rows * m.cols, m.rows * m.cols};
}

/// What a launcher is given for a Matrix; a template, as memory.hpp cannot be included here.
template <template <class> class Matrix, class T>
DeviceMatrix<T> device_matrix(const Matrix<T>& m) {
    return {raw(m), m.rows, m.cols, m.stride};
}

/// The same for a Matrix of bfloat16, as its bits; null where it is empty.
template <template <class> class Matrix, class T>
DeviceMatrix<std::uint16_t> device_bits(const Matrix<T>& m) {
    if (m.elements.empty()) return {};
    return {&raw(m)->bits, m.rows, m.cols, m.stride};
}

}  // namespace clt::cuda
