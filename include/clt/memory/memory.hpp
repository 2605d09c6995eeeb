// Memory that a backend computes on: spans that cannot be indexed by host code (it may be device
// memory), owning buffers, and accounting by purpose. The raw pointer comes out in memory/raw.hpp,
// for backend/ and comm/ only.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <utility>

#include "clt/base/error.hpp"
#include "clt/base/types.hpp"

namespace clt {

struct RawAccess;  // memory/raw.hpp

/// A view of n elements of backend memory; no ownership, no operator[].
template <class T>
class Span {
  public:
    Span() = default;
    operator Span<const T>() const { return {data_, size_}; }

    Index size() const { return size_; }
    bool empty() const { return size_ == 0; }
    Span subspan(Index offset, Index count) const {
        CLT_CHECK(offset >= 0 && count >= 0 && offset + count <= size_, "[{}, {}) of {}", offset,
                  offset + count, size_);
        return {data_ + offset, count};
    }

  private:
    friend struct RawAccess;
    template <class>
    friend class Span;
    Span(T* data, Index size) : data_(data), size_(size) {}

    T* data_ = nullptr;
    Index size_ = 0;
};

/// A row-major rows × cols view of backend memory; consecutive rows are `stride` elements apart.
template <class T>
struct Matrix {
    Span<T> elements;
    Index rows = 0;
    Index cols = 0;
    Index stride = 0;

    Matrix() = default;
    Matrix(Span<T> span, Index n_rows, Index n_cols) : Matrix(span, n_rows, n_cols, n_cols) {}
    Matrix(Span<T> span, Index n_rows, Index n_cols, Index row_stride)
        : elements(span), rows(n_rows), cols(n_cols), stride(row_stride) {
        CLT_CHECK(rows == 0 || cols == 0 || (rows - 1) * stride + cols <= span.size());
    }
    operator Matrix<const T>() const { return {elements, rows, cols, stride}; }
};

/// Rows [first, first + n).
template <class T>
Matrix<T> rows_of(const Matrix<T>& m, Index first, Index n) {
    if (n == 0 || m.elements.empty()) return {m.elements.subspan(0, 0), 0, m.cols, m.stride};
    return {m.elements.subspan(first * m.stride, (n - 1) * m.stride + m.cols), n, m.cols, m.stride};
}
/// Columns [first, first + n).
template <class T>
Matrix<T> columns_of(const Matrix<T>& m, Index first, Index n) {
    if (m.rows == 0 || m.elements.empty()) return {m.elements.subspan(0, 0), 0, n, m.stride};
    return {m.elements.subspan(first, (m.rows - 1) * m.stride + n), m.rows, n, m.stride};
}

/// What memory is for; `clt plan` and out-of-memory messages report by it.
enum class Purpose {
    parameters,
    moments,
    gradients,
    batch,
    candidates,
    active_set,
    workspace,
    language_model
};
inline constexpr int purpose_count = 8;
const char* name_of(Purpose purpose);

/// Allocates backend memory and counts it. Not thread-safe.
class MemoryResource {
  public:
    virtual ~MemoryResource() = default;

    /// 64-byte aligned, uninitialised. Throws UserError that names the purpose, the size, where it
    /// was looked for and what is in use.
    void* allocate(std::size_t bytes, Purpose purpose);
    void deallocate(void* pointer, std::size_t bytes, Purpose purpose) noexcept;
    /// Gives back what was freed and kept for reuse.
    virtual void return_free_blocks() noexcept {}

    std::size_t bytes_in_use(Purpose purpose) const {
        return in_use_[static_cast<std::size_t>(purpose)];
    }
    std::size_t bytes_in_use() const { return total_; }
    std::size_t peak_bytes() const { return peak_; }

  private:
    virtual void* do_allocate(std::size_t bytes) = 0;  // null when there is none
    virtual void do_deallocate(void* pointer, std::size_t bytes) noexcept = 0;
    virtual std::string place() const = 0;  // for messages

    std::array<std::size_t, purpose_count> in_use_{};
    std::size_t total_ = 0;
    std::size_t peak_ = 0;
};

/// Host memory, 64-byte aligned; large blocks ask for huge pages.
class HostMemory final : public MemoryResource {
    void* do_allocate(std::size_t bytes) override;
    void do_deallocate(void* pointer, std::size_t bytes) noexcept override;
    std::string place() const override;
};

/// Owns n uninitialised elements of a MemoryResource, which must outlive it.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(MemoryResource& memory, Index size, Purpose purpose);
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        Buffer(std::move(other)).swap(*this);
        return *this;
    }
    ~Buffer() {
        if (memory_ != nullptr)
            memory_->deallocate(data_, static_cast<std::size_t>(size_) * sizeof(T), purpose_);
    }

    Index size() const { return size_; }
    Span<T> span();
    Span<const T> span() const;

    /// Makes room for at least n elements; the content is lost when it has to grow.
    void reserve_discarding(MemoryResource& memory, Index n, Purpose purpose) {
        if (n > size_) *this = Buffer(memory, n, purpose);
    }

  private:
    void swap(Buffer& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(purpose_, other.purpose_);
    }

    MemoryResource* memory_ = nullptr;
    T* data_ = nullptr;
    Index size_ = 0;
    Purpose purpose_ = Purpose::workspace;
};

/// Makes spans; everything else reads them through raw() in memory/raw.hpp.
struct RawAccess {
    template <class T>
    static Span<T> span(T* data, Index size) {
        return {data, size};
    }
    template <class T>
    static T* pointer(Span<T> span) {
        return span.data_;
    }
};

template <class T>
Buffer<T>::Buffer(MemoryResource& memory, Index size, Purpose purpose)
    : memory_(&memory),
      data_(static_cast<T*>(memory.allocate(static_cast<std::size_t>(size) * sizeof(T), purpose))),
      size_(size),
      purpose_(purpose) {}

template <class T>
Span<T> Buffer<T>::span() {
    return RawAccess::span(data_, size_);
}

template <class T>
Span<const T> Buffer<T>::span() const {
    return RawAccess::span<const T>(data_, size_);
}

}  // namespace clt
