// What the CPU kernels share: row pointers, and sums that come out the same for any number of
// threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "clt/memory/raw.hpp"

namespace clt::cpu {

template <class T>
T* row_of(const Matrix<T>& m, Index row) {
    return raw(m) + row * m.stride;
}

/// term(0) + ... + term(n - 1), n large pieces of work. The terms are computed by all threads and
/// added in order.
template <class T, class Term>
T ordered_sum(Index n, Term term) {
    std::vector<T> terms(static_cast<std::size_t>(n));
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < n; ++i) terms[static_cast<std::size_t>(i)] = term(i);
    T sum{};
    for (const T& value : terms) sum += value;
    return sum;
}

/// Sets the flag of ParamRows.
inline void raise(const Span<double>& not_finite) {
    if (!not_finite.empty()) *raw(not_finite) = 1;
}

/// Sum of squares of n floats.
inline double sum_of_squares(const float* x, Index n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return sum;
}

}  // namespace clt::cpu
