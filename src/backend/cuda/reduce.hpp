// What kernels share: sums and scans over a warp or a block in a fixed order, so that the bits do
// not depend on which thread comes first; sizes of grids.
//
// Every thread of the block (the warp) must call, as with __syncthreads (__syncwarp).
#pragma once

#include "backend/cuda/device_code.hpp"

#include <cstdint>

#include "clt/base/types.hpp"

namespace clt::cuda {

inline constexpr int warp_lanes = 32;
inline constexpr unsigned all_lanes = 0xFFFFFFFFU;

__device__ inline int lane_of_thread() {
    return static_cast<int>(threadIdx.x % warp_lanes);
}
__device__ inline int warp_of_thread() {
    return static_cast<int>(threadIdx.x / warp_lanes);
}

// ---- warps --------------------------------------------------------------------------------------

/// The sum of the lanes' values, the same bits on every lane.
template <class T>
__device__ T warp_sum(T value) {
    for (int other = warp_lanes / 2; other > 0; other /= 2)
        value += __shfl_xor_sync(all_lanes, value, other);
    return value;
}

/// The sum of this lane's value and those below it.
template <class T>
__device__ T warp_inclusive_sum(T value) {
    const int lane = lane_of_thread();
    for (int distance = 1; distance < warp_lanes; distance *= 2) {
        const T below = __shfl_up_sync(all_lanes, value, static_cast<unsigned>(distance));
        if (lane >= distance) value += below;
    }
    return value;
}

// ---- blocks of one dimension; `threads` is blockDim.x, a multiple of 32 -------------------------

/// The sum of the threads' values, the same bits on every thread. May be called in a loop.
template <int threads, class T>
__device__ T block_sum(T value) {
    static_assert(threads % warp_lanes == 0 && threads <= warp_lanes * warp_lanes);
    constexpr int warps = threads / warp_lanes;
    value = warp_sum(value);
    if constexpr (warps == 1) return value;
    CLT_SHARED(T, sum_of_warp, warps);
    __syncthreads();  // the call before may still be reading
    if (lane_of_thread() == 0) sum_of_warp[warp_of_thread()] = value;
    __syncthreads();
    return warp_sum(lane_of_thread() < warps ? sum_of_warp[lane_of_thread()] : T{});
}

/// Integers: the sum of the values of the threads before this one; `total`: of all. May be called
/// in a loop.
template <int threads, class T>
__device__ T block_exclusive_sum(T value, T& total) {
    static_assert(threads % warp_lanes == 0 && threads <= warp_lanes * warp_lanes);
    constexpr int warps = threads / warp_lanes;
    CLT_SHARED(T, sum_of_warp, warps);
    const T inclusive = warp_inclusive_sum(value);
    __syncthreads();  // the call before may still be reading
    if (lane_of_thread() == warp_lanes - 1) sum_of_warp[warp_of_thread()] = inclusive;
    __syncthreads();
    const T warp_total = lane_of_thread() < warps ? sum_of_warp[lane_of_thread()] : T{};
    const T up_to_warp = warp_inclusive_sum(warp_total);
    total = __shfl_sync(all_lanes, up_to_warp, warps - 1);
    const T before_warp = __shfl_sync(all_lanes, up_to_warp - warp_total, warp_of_thread());
    return before_warp + inclusive - value;
}

// ---- accesses -----------------------------------------------------------------------------------

// Data that is used once should not push what is used again out of the caches.
template <class T>
__device__ T load_once(const T* from) {
#if defined(__CUDACC__)
    return __ldcs(from);
#else
    return *from;
#endif
}
template <class T>
__device__ void store_once(T* to, T value) {
#if defined(__CUDACC__)
    __stcs(to, value);
#else
    *to = value;
#endif
}

// ---- sums over a grid ---------------------------------------------------------------------------

/// Blocks that a sum over a whole array is given at most: their number decides the order of the
/// sum, so it does not follow the device.
inline constexpr Index most_partials = 1024;
inline constexpr int partials_threads = 256;

// One block: sum += factor * (the partials in a fixed order). For sums that blocks left in scratch.
template <int threads>
__global__ void __launch_bounds__(threads)
    add_partials_kernel(const double* partials, Index n, double factor, double* sum) {
    double own = 0;
    for (Index i = threadIdx.x; i < n; i += threads) own += partials[i];
    const double all = block_sum<threads>(own);
    if (threadIdx.x == 0) *sum += factor * all;
}
/// sum[1] += factor * sum of partials[n].
inline void add_partials(const double* partials, Index n, double factor, double* sum,
                         StreamHandle stream) {
    CLT_LAUNCH(add_partials_kernel<partials_threads>, dim3(1), dim3(partials_threads), stream,
               partials, n, factor, sum);
}

// ---- counts and grids ---------------------------------------------------------------------------

/// Order does not matter to integers, so this one atomic is deterministic.
__device__ inline void atomic_add(Index* to, Index value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

/// Blocks of `each` elements that hold n.
inline unsigned blocks_for(Index n, Index each) {
    return static_cast<unsigned>((n + each - 1) / each);
}

}  // namespace clt::cuda
