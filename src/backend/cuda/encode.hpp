// Kernels of the encoder's tiles. Matrices are row-major, strides in elements; T features of a
// tile, B tokens.
#pragma once

#include <cstdint>

#include "backend/cuda/device_matrix.hpp"
#include "backend/cuda/runtime.hpp"
#include "clt/backend/plain.hpp"

namespace clt::cuda {

/// to = from as bfloat16, same shape.
void round(DeviceMatrix<const float> from, DeviceMatrix<std::uint16_t> to, StreamHandle stream);

// tile: pre[T, B].
/// sums[T, 2]
void tile_sums(const DeviceMatrix<const float>& tile, double* sums, StreamHandle stream);
/// sum[1]; row_sums[T] is scratch.
void negative_sum(const DeviceMatrix<const float>& tile, double* row_sums, double* sum,
                  StreamHandle stream);

/// What collect() compares with; null where the rule does not ask for it.
struct CollectBounds {
    const double* sums = nullptr;  // [T, 2]
    Index sum_tokens = 0;
    const float* bound = nullptr;          // [1] or [B]
    const float* log_threshold = nullptr;  // [T]
};
/// Where candidates go: arrays of `capacity` entries.
struct CandidateArrays {
    Index* size = nullptr;  // [1]
    std::int32_t* row = nullptr;
    std::int32_t* token = nullptr;
    float* pre = nullptr;
    std::uint32_t* key = nullptr;
    Index capacity = 0;
};
/// Words that collect() needs as scratch: a bit an entry and a count a row.
inline Index collect_words(const DeviceMatrix<const float>& tile) {
    return tile.rows * ((tile.cols + 31) / 32 + 1);
}
/// words[collect_words()] and size_before[1] are scratch.
void collect(const CollectRule& rule, const DeviceMatrix<const float>& tile, Index first_row,
             const CollectBounds& bounds, std::uint32_t* words, Index* size_before,
             const CandidateArrays& out, StreamHandle stream);

}  // namespace clt::cuda
