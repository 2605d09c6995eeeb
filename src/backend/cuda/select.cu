// Radix select among the candidates. Counts are integers, so any order of counting gives the same
// cut. Each kernel reads how many candidates there are on the device: the host never waits.
#include "backend/cuda/device_code.hpp"

#include <algorithm>

#include "backend/cuda/reduce.hpp"
#include "backend/cuda/select.hpp"

namespace clt::cuda {
namespace {

__device__ Index held(const CandidateArrays& candidates) {
    return min(*candidates.size, candidates.capacity);
}

// ---- counting -----------------------------------------------------------------------------------

// digit(i, group): below 2^bits, or -1 where entry i is not counted.

struct KeyDigit {
    const std::uint32_t* key;
    const std::uint64_t* score;
    int shift;
    int bits;

    __device__ int operator()(Index i, Index group) const {
        const std::uint64_t k = key[i];  // 64 bits: shift + bits may be 32
        if (k >> (shift + bits) != score[group] >> (shift + bits)) return -1;
        return static_cast<int>(k >> shift & ((1U << bits) - 1));
    }
};

struct PositionDigit {
    const std::uint32_t* key;
    const std::int32_t* row;
    const std::int32_t* token;
    const std::uint64_t* score;
    const std::uint64_t* position;
    PositionMap map;
    int shift;
    int bits;
    bool per_token;

    __device__ int operator()(Index i, Index group) const {
        if (key[i] != score[group]) return -1;
        const std::uint64_t p = map.position(row[i], token[i], per_token);
        if (p >> (shift + bits) != position[group] >> (shift + bits)) return -1;
        return static_cast<int>(p >> shift & ((1U << bits) - 1));
    }
};

constexpr int count_threads = 256;
constexpr int most_shared_bits = 11;
constexpr int blocks_of_multiprocessor = 4;  // enough loads in flight; each adds its bins once

/// One group: blocks count in shared memory and add their bins to counts[2^bits]. Keys near the cut
/// share their high digits, so equal digits of a warp are counted by one atomic.
template <class Digit>
__global__ void count_in_shared(CandidateArrays candidates, Digit digit, int bins, Index* counts) {
    CLT_SHARED(unsigned, own, 1 << most_shared_bits);
    for (int d = static_cast<int>(threadIdx.x); d < bins; d += count_threads) own[d] = 0;
    __syncthreads();
    const Index n = held(candidates);
    const Index step = static_cast<Index>(gridDim.x) * count_threads;
    for (Index first = static_cast<Index>(blockIdx.x) * count_threads; first < n; first += step) {
        const Index i = first + threadIdx.x;
        const int d = i < n ? digit(i, 0) : -1;
        const unsigned peers = __match_any_sync(all_lanes, d);
        if (d >= 0 && __ffs(static_cast<int>(peers)) - 1 == lane_of_thread())
            atomicAdd(own + d, static_cast<unsigned>(__popc(peers)));
    }
    __syncthreads();
    for (int d = static_cast<int>(threadIdx.x); d < bins; d += count_threads)
        if (own[d] != 0) atomic_add(counts + d, own[d]);
}

/// Any number of groups: a thread an entry, counted in L2. Entries side by side lie in one row, so
/// they are of different tokens.
template <class Digit>
__global__ void count_in_global(CandidateArrays candidates, Digit digit, Index groups, int bits,
                                Index* counts) {
    const Index n = held(candidates);
    const Index step = static_cast<Index>(gridDim.x) * count_threads;
    for (Index i = static_cast<Index>(blockIdx.x) * count_threads + threadIdx.x; i < n; i += step) {
        const Index group = groups > 1 ? candidates.token[i] : 0;
        const int d = digit(i, group);
        if (d >= 0) atomic_add(counts + (group << bits) + d, 1);
    }
}

template <class Digit>
void count(const CandidateArrays& candidates, const Digit& digit, Index groups, int bits,
           Index* counts, int multiprocessors, StreamHandle stream) {
    const unsigned blocks =
        std::min(blocks_for(candidates.capacity, count_threads),
                 static_cast<unsigned>(blocks_of_multiprocessor * multiprocessors));
    if (groups == 1 && bits <= most_shared_bits)
        CLT_LAUNCH(count_in_shared<Digit>, blocks, count_threads, stream, candidates, digit,
                   1 << bits, counts);
    else
        CLT_LAUNCH(count_in_global<Digit>, blocks, count_threads, stream, candidates, digit, groups,
                   bits, counts);
}

// ---- choosing -----------------------------------------------------------------------------------

/// Where a group's counts are walked from, and its place in the cut.
struct Choice {
    const Index* counts;  // [G, bins]
    Index bins;
    int shift;
    bool from_below;
    std::uint64_t* chosen;
    Index* remaining;

    __device__ Index digit(Index step) const { return from_below ? step : bins - 1 - step; }
    /// The walk's step of this thread, `before` entries above it: takes the digit when the last
    /// entry kept lies in it. The last step takes what no step before it took.
    __device__ void take(Index group, Index step, Index before, Index count, Index wanted) const {
        const bool reached = before + count >= wanted || step == bins - 1;
        const bool reached_before = step > 0 && before >= wanted;
        if (!reached || reached_before) return;
        chosen[group] |= static_cast<std::uint64_t>(digit(step)) << shift;
        remaining[group] = wanted - before;
    }
};

constexpr int choose_threads = 1024;

/// One group, one block, a thread a bin.
__global__ void __launch_bounds__(choose_threads) choose_in_block(Choice choice) {
    const Index wanted = *choice.remaining;
    Index before = 0;
    for (Index first = 0; first < choice.bins; first += choose_threads) {
        const Index step = first + threadIdx.x;
        const Index count = step < choice.bins ? choice.counts[choice.digit(step)] : 0;
        Index total = 0;
        const Index in_block = block_exclusive_sum<choose_threads>(count, total);
        if (step < choice.bins) choice.take(0, step, before + in_block, count, wanted);
        before += total;
    }
}

constexpr int choose_groups = 8;  // of a block, a warp each

/// A warp a group, a lane a bin.
__global__ void choose_in_warps(Choice choice, Index groups) {
    const Index group = static_cast<Index>(blockIdx.x) * choose_groups + warp_of_thread();
    if (group >= groups) return;
    const Index wanted = choice.remaining[group];
    __syncwarp();  // one of the lanes will write it
    Index before = 0;
    for (Index first = 0; first < choice.bins; first += warp_lanes) {
        const Index step = first + lane_of_thread();
        const Index count =
            step < choice.bins ? choice.counts[group * choice.bins + choice.digit(step)] : 0;
        const Index up_to = warp_inclusive_sum(count);
        if (step < choice.bins) choice.take(group, step, before + up_to - count, count, wanted);
        before += __shfl_sync(all_lanes, up_to, warp_lanes - 1);
    }
}

// ---- keeping ------------------------------------------------------------------------------------
// A stable compaction: the entries that stay in each chunk are counted, the counts scanned, and
// each chunk written where the scan says.

constexpr int keep_warps = 8;  // of a block, a chunk each
constexpr int keep_threads = keep_warps * warp_lanes;
constexpr Index chunk = 512;  // entries; small enough to keep every warp of the device busy

struct Stays {
    const std::uint32_t* key;
    const std::int32_t* row;
    const std::int32_t* token;
    const std::uint64_t* score;
    const std::uint64_t* last;
    PositionMap map;
    bool per_token;

    __device__ bool operator()(Index i) const {
        const Index group = per_token ? token[i] : 0;
        if (key[i] != score[group]) return key[i] > score[group];
        return map.position(row[i], token[i], per_token) <= last[group];
    }
};

/// A warp a chunk: counts[chunk] = entries that stay.
__global__ void count_kept(CandidateArrays candidates, Stays stays, Index* counts) {
    const Index c = static_cast<Index>(blockIdx.x) * keep_warps + warp_of_thread();
    const Index n = held(candidates);
    if (c * chunk >= n) return;
    int kept = 0;
    for (Index i = c * chunk + lane_of_thread(); i < min(n, (c + 1) * chunk); i += warp_lanes)
        kept += stays(i) ? 1 : 0;
    kept = warp_sum(kept);
    if (lane_of_thread() == 0) counts[c] = kept;
}

constexpr int scan_threads = 1024;

/// One block: counts[chunks of the candidates] become starts, their total the new size.
__global__ void __launch_bounds__(scan_threads)
    scan_chunks(CandidateArrays candidates, Index* counts, Index* size) {
    const Index chunks = (held(candidates) + chunk - 1) / chunk;
    Index before = 0;
    for (Index first = 0; first < chunks; first += scan_threads) {
        const Index c = first + threadIdx.x;
        Index total = 0;
        const Index in_block =
            block_exclusive_sum<scan_threads>(c < chunks ? counts[c] : Index{0}, total);
        if (c < chunks) counts[c] = before + in_block;
        before += total;
    }
    if (threadIdx.x == 0) *size = before;
}

/// A warp a chunk: moves the entries that stay, in order.
__global__ void move_kept(CandidateArrays candidates, Stays stays, const Index* starts,
                          CandidateArrays kept) {
    const Index c = static_cast<Index>(blockIdx.x) * keep_warps + warp_of_thread();
    const Index n = held(candidates);
    if (c * chunk >= n) return;
    const unsigned lanes_below = (1U << lane_of_thread()) - 1;
    Index at = starts[c];
    for (Index first = c * chunk; first < min(n, (c + 1) * chunk); first += warp_lanes) {
        const Index i = first + lane_of_thread();
        const bool stay = i < n && stays(i);
        const unsigned staying = __ballot_sync(all_lanes, stay);
        if (stay) {
            const Index to = at + __popc(staying & lanes_below);
            kept.row[to] = candidates.row[i];
            kept.token[to] = candidates.token[i];
            kept.pre[to] = candidates.pre[i];
            kept.key[to] = candidates.key[i];
        }
        at += __popc(staying);
    }
}

constexpr int bound_threads = 256;

/// A thread a group.
__global__ void raise_bounds(const std::uint64_t* score, Index groups, float* bound) {
    const Index g = static_cast<Index>(blockIdx.x) * bound_threads + threadIdx.x;
    if (g >= groups) return;
    const float reached = value_of_key(static_cast<std::uint32_t>(score[g]));
    if (bound[g] < reached) bound[g] = reached;
}

}  // namespace

void count_digits(const CandidateArrays& candidates, const CutArrays& cut, int shift, int bits,
                  Index* counts, int multiprocessors, StreamHandle stream) {
    count(candidates, KeyDigit{candidates.key, cut.score, shift, bits}, cut.groups, bits, counts,
          multiprocessors, stream);
}

void count_position_digits(const CandidateArrays& candidates, const PositionMap& map,
                           const CutArrays& cut, int shift, int bits, Index* counts,
                           int multiprocessors, StreamHandle stream) {
    const PositionDigit digit{candidates.key, candidates.row, candidates.token,
                              cut.score,      cut.position,   map,
                              shift,          bits,           cut.groups > 1};
    count(candidates, digit, cut.groups, bits, counts, multiprocessors, stream);
}

void choose_digit(const Index* counts, int shift, int bits, bool positions, const CutArrays& cut,
                  StreamHandle stream) {
    const Choice choice{
        counts,       Index{1} << bits, shift, positions, positions ? cut.position : cut.score,
        cut.remaining};
    if (cut.groups == 1 && choice.bins > warp_lanes)
        CLT_LAUNCH(choose_in_block, 1, choose_threads, stream, choice);
    else
        CLT_LAUNCH(choose_in_warps, blocks_for(cut.groups, choose_groups),
                   choose_groups * warp_lanes, stream, choice, cut.groups);
}

Index keep_chunks(Index capacity) {
    return (capacity + chunk - 1) / chunk;
}

void keep(const CandidateArrays& candidates, const PositionMap& map, const CutArrays& cut,
          Index* chunk_starts, const CandidateArrays& kept, StreamHandle stream) {
    const Stays stays{candidates.key, candidates.row, candidates.token,
                      cut.score,      cut.position,   map,
                      cut.groups > 1};
    // Sized by the capacity, as the host does not know how many there are: blocks beyond end at
    // once.
    const unsigned blocks = blocks_for(keep_chunks(candidates.capacity), keep_warps);
    CLT_LAUNCH(count_kept, blocks, keep_threads, stream, candidates, stays, chunk_starts);
    CLT_LAUNCH(scan_chunks, 1, scan_threads, stream, candidates, chunk_starts, kept.size);
    CLT_LAUNCH(move_kept, blocks, keep_threads, stream, candidates, stays, chunk_starts, kept);
}

void raise_bound(const CutArrays& cut, float* bound, StreamHandle stream) {
    CLT_LAUNCH(raise_bounds, blocks_for(cut.groups, bound_threads), bound_threads, stream,
               cut.score, cut.groups, bound);
}

}  // namespace clt::cuda
