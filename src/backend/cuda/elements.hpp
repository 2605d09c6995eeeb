// Loops over the elements of matrices, 16 bytes a thread where all rows allow it.
#pragma once

#include "backend/cuda/device_code.hpp"

#include <algorithm>

#include "backend/cuda/device_matrix.hpp"
#include "backend/cuda/reduce.hpp"

namespace clt::cuda {

/// `width` neighbours of a row: what one thread loads and stores at once.
template <int width, class T = float>
struct alignas(width * sizeof(T)) Pack {
    T lane[width];
};
template <int width, class T>
__device__ Pack<width, T> load(const T* from) {
    return *reinterpret_cast<const Pack<width, T>*>(from);
}
template <int width, class T>
__device__ void store(T* to, const Pack<width, T>& pack) {
    *reinterpret_cast<Pack<width, T>*>(to) = pack;
}

// The same for what is used once, see reduce.hpp.
template <int width>
__device__ Pack<width> load_once(const float* from) {
    if constexpr (width == 4) {
        const float4 v = load_once(reinterpret_cast<const float4*>(from));
        return {{v.x, v.y, v.z, v.w}};
    } else {
        return {{load_once(from)}};
    }
}
template <int width>
__device__ void store_once(float* to, const Pack<width>& pack) {
    if constexpr (width == 4)
        store_once(reinterpret_cast<float4*>(to),
                   make_float4(pack.lane[0], pack.lane[1], pack.lane[2], pack.lane[3]));
    else
        store_once(to, pack.lane[0]);
}

/// Whether all rows of such a matrix begin where a pack of 4 may.
template <class T>
bool rows_hold_packs(const T* elements, Index stride) {
    return stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(elements) % (4 * sizeof(T)) == 0;
}
/// Whether rows divide into packs of 4 without a rest.
template <class T>
bool divides_into_4(const DeviceMatrix<T>& m) {
    return m.cols % 4 == 0 && rows_hold_packs(m.data, m.stride);
}

inline constexpr int element_threads = 256;
inline constexpr Index most_rows_of_grid = 65535;

// A thread takes one pack of columns and every gridDim.y-th row of threads.
template <class Operation, int width>
__global__ void __launch_bounds__(element_threads)
    for_each_pack(Index rows, Index cols, Operation operation) {
    const Index col = (Index{blockIdx.x} * blockDim.x + threadIdx.x) * width;
    if (col >= cols) return;
    const Index step = Index{gridDim.y} * blockDim.y;
#pragma unroll 1  // nearly always one row; counting the rounds would take a division
    for (Index row = Index{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += step)
        operation.template run<width>(row, col);
}

/// operation.run<width>(row, col) for every pack of a rows x cols matrix; width 4 when `packed`.
template <class Operation>
void for_each_element(Index rows, Index cols, bool packed, const Operation& operation,
                      StreamHandle stream) {
    if (rows == 0 || cols == 0) return;
    const Index packs = packed ? cols / 4 : cols;
    Index x = 1;  // a power of two up to a warp, then whole warps, so that few threads idle
    while (x < std::min<Index>(packs, warp_lanes)) x *= 2;
    if (packs > warp_lanes)
        x = std::min<Index>(element_threads, (packs + warp_lanes - 1) / warp_lanes * warp_lanes);
    const Index y = element_threads / x;
    const dim3 block(static_cast<unsigned>(x), static_cast<unsigned>(y));
    const dim3 grid(blocks_for(packs, x),
                    std::min(blocks_for(rows, y), static_cast<unsigned>(most_rows_of_grid)));
    if (packed)
        CLT_LAUNCH((for_each_pack<Operation, 4>), grid, block, stream, rows, cols, operation);
    else
        CLT_LAUNCH((for_each_pack<Operation, 1>), grid, block, stream, rows, cols, operation);
}

}  // namespace clt::cuda
