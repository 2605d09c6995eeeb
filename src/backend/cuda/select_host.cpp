// Radix select among the candidates.
#include "backend/cuda/select.hpp"

#include <utility>

#include "backend/cuda/cuda_backend.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

// Kernels take pointers that they may write through; which they do stands on their page.
template <class T>
T* pointer(const Buffer<T>& buffer) {
    return const_cast<T*>(raw(buffer.span()));
}
cuda::CandidateArrays arrays_of(const Candidates& candidates) {
    return {pointer(candidates.size), pointer(candidates.row), pointer(candidates.token),
            pointer(candidates.pre),  pointer(candidates.key), candidates.capacity()};
}
cuda::CutArrays arrays_of(const Cut& cut) {
    return {cut.groups, pointer(cut.score), pointer(cut.position), pointer(cut.remaining)};
}

}  // namespace

void CudaBackend::count_digits(const Candidates& candidates, const Cut& cut, int shift, int bits,
                               Span<Index> counts) {
    CLT_CHECK(counts.size() == cut.groups << bits);
    cuda::count_digits(arrays_of(candidates), arrays_of(cut), shift, bits, raw(counts),
                       device_.limits().multiprocessors, stream());
}

void CudaBackend::count_position_digits(const Candidates& candidates, const PositionMap& map,
                                        const Cut& cut, int shift, int bits, Span<Index> counts) {
    CLT_CHECK(counts.size() == cut.groups << bits);
    cuda::count_position_digits(arrays_of(candidates), map, arrays_of(cut), shift, bits,
                                raw(counts), device_.limits().multiprocessors, stream());
}

void CudaBackend::choose_digit(Span<const Index> counts, int shift, int bits, bool positions,
                               Cut& cut) {
    CLT_CHECK(counts.size() == cut.groups << bits);
    cuda::choose_digit(raw(counts), shift, bits, positions, arrays_of(cut), stream());
}

void CudaBackend::keep(const PositionMap& map, const Cut& cut, Candidates& candidates) {
    // As large as the source, which it replaces: the next tiles append without growing it.
    reset(kept_, candidates.capacity(), /*ranked=*/true);
    cuda::keep(arrays_of(candidates), map, arrays_of(cut),
               scratch<Index>(cuda::keep_chunks(candidates.capacity())), arrays_of(kept_),
               stream());
    std::swap(candidates, kept_);
}

void CudaBackend::raise_bound(const Cut& cut, Span<float> bound) {
    CLT_CHECK(bound.size() == cut.groups);
    cuda::raise_bound(arrays_of(cut), raw(bound), stream());
}

}  // namespace clt
