// Weighted sums of a matrix's rows, the heart of decode and of the row gradients: a warp walks a
// list of (row, factor) and holds a panel of columns in registers. The terms of a sum are added in
// the list's order, so the bits do not depend on how columns are cut into panels.
#pragma once

#include "backend/cuda/device_code.hpp"

#include "backend/cuda/elements.hpp"

namespace clt::cuda {

template <int width>
__device__ void add_scaled(Pack<width>& sum, float factor, const Pack<width>& x) {
#pragma unroll
    for (int i = 0; i < width; ++i) sum.lane[i] += factor * x.lane[i];
}

/// One term of a sum: factor * row of the source. row < 0: nothing, and nothing is read.
struct Term {
    std::int32_t row = -1;
    float factor = 0;
};

/// The column, counted from the panel's first, where vector n of this lane starts.
template <int width>
__device__ int column_of(int n) {
    return lane_of_thread() * width + n * warp_lanes * width;
}

/// A panel of `columns` columns (at most 32 * vectors * width) of a matrix whose rows are `stride`
/// apart; source: the panel's first column of row 0.
struct GatherSource {
    const float* source = nullptr;
    Index stride = 0;
    int columns = 0;
};

/// sum[n] += over i in [0, terms) of term(i).factor * the row's panel. `with_dot`: also
/// add_dot(i, <row's panel, weight>), called by one lane for each i. `in_flight` terms are loaded
/// before the first is used (a divisor of 32). A warp calls.
template <int width, int vectors, int in_flight, bool with_dot, class TermOf, class AddDot>
__device__ void gather(const GatherSource& from, int terms, const TermOf& term,
                       const Pack<width> (&weight)[vectors], Pack<width> (&sum)[vectors],
                       const AddDot& add_dot) {
    static_assert(warp_lanes % in_flight == 0);
    const int lane = lane_of_thread();
    const float* source = from.source + lane * width;  // vector n: a constant further
    for (int chunk = 0; chunk < terms; chunk += warp_lanes) {
        const int count = min(terms - chunk, warp_lanes);
        const Term own = lane < count ? term(chunk + lane) : Term{};
        float own_dot = 0;
#pragma unroll 1
        for (int j = 0; j < count; j += in_flight) {
            Pack<width> x[in_flight][vectors];
#pragma unroll
            for (int u = 0; u < in_flight; ++u) {
                const std::int32_t row = __shfl_sync(all_lanes, own.row, j + u);
                const float* panel = source + row * from.stride;
#pragma unroll
                for (int n = 0; n < vectors; ++n) {
                    x[u][n] = {};
                    if (row >= 0 && column_of<width>(n) < from.columns)
                        x[u][n] = load<width>(panel + n * warp_lanes * width);
                }
            }
#pragma unroll
            for (int u = 0; u < in_flight; ++u) {
                const float factor = __shfl_sync(all_lanes, own.factor, j + u);
                float product = 0;
#pragma unroll
                for (int n = 0; n < vectors; ++n) {
                    add_scaled(sum[n], factor, x[u][n]);
                    if constexpr (with_dot)
#pragma unroll
                        for (int i = 0; i < width; ++i)
                            product += x[u][n].lane[i] * weight[n].lane[i];
                }
                if constexpr (with_dot) {
                    product = warp_sum(product);
                    if (lane == j + u) own_dot = product;
                }
            }
        }
        if constexpr (with_dot)
            if (lane < count) add_dot(chunk + lane, own_dot);
    }
}

/// The warps' panels, added in the warps' order: thread t gets column t * width of the sum (threads
/// beyond the panel get nothing of use). Every thread of a block of `warps` warps calls; may be
/// called in a loop.
template <int warps, int width, int vectors>
__device__ Pack<width> sum_of_warps(const Pack<width> (&part)[vectors]) {
    constexpr int columns = vectors * warp_lanes * width;
    static_assert(vectors <= warps, "a thread for each vector of the panel");
    using Panel = float[columns];
    CLT_SHARED(Panel, part_of_warp, warps);
    __syncthreads();  // the call before may still be reading
#pragma unroll
    for (int n = 0; n < vectors; ++n)
#pragma unroll
        for (int i = 0; i < width; ++i)
            part_of_warp[warp_of_thread()][column_of<width>(n) + i] = part[n].lane[i];
    __syncthreads();
    Pack<width> sum = {};
    const int column = static_cast<int>(threadIdx.x) * width;
    if (column >= columns) return sum;
#pragma unroll
    for (int warp = 0; warp < warps; ++warp)
#pragma unroll
        for (int i = 0; i < width; ++i) sum.lane[i] += part_of_warp[warp][column + i];
    return sum;
}

}  // namespace clt::cuda
