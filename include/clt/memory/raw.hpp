// The raw pointer of a span. Only backend/, comm/ and tests may include this page
// (tools/check_layers.py): elsewhere the pointer could be device memory and reading it on the host
// would crash.
#pragma once

#include <span>

#include "clt/memory/memory.hpp"

namespace clt {

template <class T>
T* raw(Span<T> span) {
    return RawAccess::pointer(span);
}
template <class T>
T* raw(const Matrix<T>& matrix) {
    return RawAccess::pointer(matrix.elements);
}

/// Host memory seen as backend memory; the caller keeps it alive.
template <class T>
Span<T> as_span(std::span<T> host) {
    return RawAccess::span(host.data(), static_cast<Index>(host.size()));
}

}  // namespace clt
