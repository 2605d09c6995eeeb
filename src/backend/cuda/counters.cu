// How often features are active.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/counters.hpp"
#include "backend/cuda/reduce.hpp"
#include "backend/elementwise.hpp"

namespace clt::cuda {
namespace {

constexpr int threads = 256;
constexpr Index short_row = 32;  // entries; longer rows are counted by the warp

/// A thread a row, as most rows have a few entries or none; the warp helps with its long rows one
/// after the other. Values are read once.
__global__ void count_rows(const Index* row_start, const float* value, Index rows, Index* active,
                           Index* fired) {
    const Index row = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
    const Index first = row < rows ? row_start[row] : 0;
    const Index last = row < rows ? row_start[row + 1] : 0;
    int actives = 0;
    int fires = 0;
    const auto look = [](float v, int& a, int& f) {
        a += v != 0 ? 1 : 0;
        f += v > fired_above ? 1 : 0;
    };
    const bool is_long = last - first > short_row;
    if (!is_long)
        for (Index i = first; i < last; ++i) look(value[i], actives, fires);
    for (unsigned left = __ballot_sync(all_lanes, is_long); left != 0; left &= left - 1) {
        const int owner = __ffs(static_cast<int>(left)) - 1;
        const Index end = __shfl_sync(all_lanes, last, owner);
        int a = 0;
        int f = 0;
        for (Index i = __shfl_sync(all_lanes, first, owner) + lane_of_thread(); i < end;
             i += warp_lanes)
            look(value[i], a, f);
        a = warp_sum(a);
        f = warp_sum(f);
        if (lane_of_thread() == owner) {
            actives = a;
            fires = f;
        }
    }
    if (row >= rows) return;
    active[row] += actives;
    fired[row] += fires;
}

constexpr int sum_threads = 1024;

/// A block a part.
__global__ void __launch_bounds__(sum_threads)
    sum_each(const Index* counts, Index each, Index* totals) {
    const Index* part = counts + blockIdx.x * each;
    Index sum = 0;
    for (Index i = threadIdx.x; i < each; i += sum_threads) sum += part[i];
    sum = block_sum<sum_threads>(sum);
    if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

/// A thread a row.
__global__ void age_rows(const Index* fired, Index rows, Index* silence) {
    const Index row = static_cast<Index>(blockIdx.x) * threads + threadIdx.x;
    if (row < rows) silence[row] = fired[row] > 0 ? 0 : silence[row] + 1;
}

}  // namespace

void count(const Index* row_start, const float* value, Index rows, Index* active, Index* fired,
           StreamHandle stream) {
    CLT_LAUNCH(count_rows, blocks_for(rows, threads), threads, stream, row_start, value, rows,
               active, fired);
}

void sum_parts(const Index* counts, Index parts, Index each, Index* totals, StreamHandle stream) {
    CLT_LAUNCH(sum_each, blocks_for(parts, 1), sum_threads, stream, counts, each, totals);
}

void age(const Index* fired, Index rows, Index* silence, StreamHandle stream) {
    CLT_LAUNCH(age_rows, blocks_for(rows, threads), threads, stream, fired, rows, silence);
}

}  // namespace clt::cuda
