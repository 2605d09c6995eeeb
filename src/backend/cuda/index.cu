// From candidates, and from the sets of replicas, to an active set.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/index.hpp"
#include "backend/cuda/reduce.hpp"
#include "backend/elementwise.hpp"

namespace clt::cuda {
namespace {

constexpr int threads = 256;

/// A thread a row (and one past the last): the first entry that is not of a row before, by binary
/// search. Long stretches of rows without entries cost no more than others.
__global__ void find_row_starts(const std::int32_t* row, Index n, Index rows, Index* row_start) {
    const Index r = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
    if (r > rows) return;
    Index first = 0;
    Index last = n;
    while (first < last) {
        const Index middle = first + (last - first) / 2;
        if (row[middle] < r)
            first = middle + 1;
        else
            last = middle;
    }
    row_start[r] = first;
}

/// A thread an entry: 12 bytes in, 16 out.
__global__ void copy_entries(const std::int32_t* row, const std::int32_t* token, const float* pre,
                             Index n, const float* log_threshold, ActiveArrays out) {
    const Index i = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
    if (i >= n) return;
    const float p = pre[i];
    out.token[i] = token[i];
    out.pre[i] = p;
    out.value[i] =
        log_threshold == nullptr ? p : jumprelu(p, jumprelu_threshold(log_threshold[row[i]]));
    out.gradient[i] = 0;
}

constexpr int warps = threads / warp_lanes;

/// A warp a row (and one past the last), a lane a part to find the starts; then the warp copies the
/// entries of part after part.
__global__ void merge_rows(Parts parts, Index rows, ActiveArrays out) {
    const Index r = static_cast<Index>(blockIdx.x) * warps + warp_of_thread();
    if (r > rows) return;
    const int lane = lane_of_thread();
    Index before = 0;
    for (Index p = lane; p < parts.count; p += warp_lanes)
        before += parts.row_starts[p * (rows + 1) + r];
    Index at = warp_sum(before);
    if (lane == 0) out.row_start[r] = at;
    if (r == rows) return;
    for (Index first_part = 0; first_part < parts.count; first_part += warp_lanes) {
        const Index p = first_part + lane;
        Index own = 0;
        Index n = 0;
        Index first_token = 0;
        if (p < parts.count) {
            const Index* starts = parts.row_starts + p * (rows + 1) + r;
            own = parts.entry_starts[p] + starts[0];
            n = starts[1] - starts[0];
            first_token = parts.token_starts[p];
        }
        for (unsigned left = __ballot_sync(all_lanes, n > 0); left != 0; left &= left - 1) {
            const int source = __ffs(static_cast<int>(left)) - 1;
            const Index from = __shfl_sync(all_lanes, own, source);
            const Index entries = __shfl_sync(all_lanes, n, source);
            const Index shift = __shfl_sync(all_lanes, first_token, source);
            for (Index i = lane; i < entries; i += warp_lanes) {
                out.token[at + i] = parts.token[from + i] + static_cast<std::int32_t>(shift);
                out.pre[at + i] = parts.pre[from + i];
                out.value[at + i] = parts.value[from + i];
                out.gradient[at + i] = 0;
            }
            at += entries;
        }
    }
}

}  // namespace

void index(const std::int32_t* row, const std::int32_t* token, const float* pre, Index n,
           const float* log_threshold, Index rows, const ActiveArrays& out, StreamHandle stream) {
    CLT_LAUNCH(find_row_starts, blocks_for(rows + 1, threads), threads, stream, row, n, rows,
               out.row_start);
    CLT_LAUNCH(copy_entries, blocks_for(n, threads), threads, stream, row, token, pre, n,
               log_threshold, out);
}

void merge(const Parts& parts, Index rows, const ActiveArrays& out, StreamHandle stream) {
    CLT_LAUNCH(merge_rows, blocks_for(rows + 1, warps), threads, stream, parts, rows, out);
}

}  // namespace clt::cuda
