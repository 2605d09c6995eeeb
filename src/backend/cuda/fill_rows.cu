#include "backend/cuda/device_code.hpp"
//
#include <cstdint>

#include "backend/cuda/fill_rows.hpp"

namespace clt::cuda {
namespace {

constexpr int block_size = 256;
constexpr Index floats_per_thread = 16;
constexpr Index chunk = block_size * floats_per_thread;

/// A block writes a chunk of one row; neighbouring threads write neighbouring Lane's.
template <class Lane>
__global__ void fill_rows_kernel(const float* __restrict__ value, Index chunks, Index cols,
                                 float* __restrict__ out) {
    constexpr Index width = sizeof(Lane) / sizeof(float);
    const Index row = static_cast<Index>(blockIdx.x) / chunks;
    const Index first = (static_cast<Index>(blockIdx.x) - row * chunks) * chunk;
    const float v = value[row];
    for (Index at = first + threadIdx.x * width; at < first + chunk && at < cols;
         at += block_size * width) {
        float* to = out + row * cols + at;
        if constexpr (width == 4)
            *reinterpret_cast<float4*>(to) = make_float4(v, v, v, v);
        else
            *to = v;
    }
}

}  // namespace

void fill_rows(const float* value, Index rows, Index cols, float* out, StreamHandle stream) {
    const Index chunks = (cols + chunk - 1) / chunk;
    const auto grid = static_cast<unsigned>(rows * chunks);
    if (cols % 4 == 0 && reinterpret_cast<std::uintptr_t>(out) % sizeof(float4) == 0)
        CLT_LAUNCH(fill_rows_kernel<float4>, grid, block_size, stream, value, chunks, cols, out);
    else
        CLT_LAUNCH(fill_rows_kernel<float>, grid, block_size, stream, value, chunks, cols, out);
}

}  // namespace clt::cuda
