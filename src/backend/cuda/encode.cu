// The encoder's tiles are read off while they are still in L2: what a kernel here moves through HBM
// is the candidates alone.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/elements.hpp"
#include "backend/cuda/encode.hpp"
#include "backend/elementwise.hpp"
#include "clt/base/float16.hpp"

namespace clt::cuda {
namespace {

// ---- round --------------------------------------------------------------------------------------

struct Round {
    DeviceMatrix<const float> from;
    DeviceMatrix<std::uint16_t> to;

    template <int width>
    __device__ void run(Index row, Index col) const {
        const auto x = load<width>(from.data + row * from.stride + col);
        Pack<width, std::uint16_t> low;
        for (int i = 0; i < width; ++i) low.lane[i] = float_to_bfloat16(x.lane[i]);
        store(to.data + row * to.stride + col, low);
    }
};

// ---- sums of rows -------------------------------------------------------------------------------

constexpr int row_threads = 256;

/// A block a row, which it reads once from L2.
__global__ void sum_rows(const float* pre, Index stride, Index tokens, double* sums) {
    const Index t = blockIdx.x;
    const float* p = pre + t * stride;
    double sum = 0;
    double squared = 0;
#pragma unroll 8
    for (Index b = threadIdx.x; b < tokens; b += row_threads) {
        const auto value = static_cast<double>(p[b]);
        sum += value;
        squared += value * value;
    }
    sum = block_sum<row_threads>(sum);
    squared = block_sum<row_threads>(squared);
    if (threadIdx.x == 0) {
        sums[2 * t] = sum;
        sums[2 * t + 1] = squared;
    }
}

/// A block a row: relu(-p) summed.
__global__ void sum_negatives_of_rows(const float* pre, Index stride, Index tokens,
                                      double* row_sums) {
    const Index t = blockIdx.x;
    const float* p = pre + t * stride;
    double sum = 0;
#pragma unroll 8
    for (Index b = threadIdx.x; b < tokens; b += row_threads)
        sum -= p[b] >= 0 ? 0.0 : static_cast<double>(p[b]);  // a NaN goes into the sum
    sum = block_sum<row_threads>(sum);
    if (threadIdx.x == 0) row_sums[t] = sum;
}

// ---- collect ------------------------------------------------------------------------------------
// A tile holds millions of pre-activations and yields thousands of candidates. So the pass over all
// of it leaves a bit an entry and a count a row, and only rows with bits are walked again; the
// counts before a row say where its entries go, whichever block comes first.

// Scans of one feature's tokens: passes(p, token, row), and score(p, row) to rank by; row: what
// row_of(t) says of feature t.

template <bool per_token, bool zscored>
struct RankedScan {
    static constexpr bool ranked = true;
    const float* bound;
    float lowest;
    const double* sums;
    double sum_tokens;

    __device__ float2 row_of(Index t) const {
        if constexpr (!zscored) return make_float2(0, 1);
        const ColumnMoments column = column_moments(sums[2 * t], sums[2 * t + 1], sum_tokens);
        return make_float2(column.mean, column.deviation);
    }
    __device__ float score(float p, float2 row) const {
        return zscored ? zscore(p, ColumnMoments{row.x, row.y}) : p;
    }
    __device__ bool passes(float p, Index token, float2 row) const {
        return score(p, row) >= bound[per_token ? token : 0] && p >= lowest;
    }
};

struct JumpReluScan {
    static constexpr bool ranked = false;
    const float* log_threshold;
    float half_window;

    __device__ float2 row_of(Index t) const {
        return make_float2(jumprelu_threshold(log_threshold[t]), 0);
    }
    __device__ bool passes(float p, Index, float2 row) const {
        return p >= row.x || in_window(p, row.x, half_window);
    }
};

struct ReluScan {
    static constexpr bool ranked = false;

    __device__ float2 row_of(Index) const { return make_float2(0, 0); }
    __device__ bool passes(float p, Index, float2) const { return p > 0; }
};

constexpr int words_at_once = 8;  // loads in flight a thread

/// A block a row: bits[row, words] of the tokens that pass, counts[row] of them; block 0 keeps the
/// size as it is. Reads the tile once from L2, coalesced.
template <class Scan>
__global__ void mark(Scan scan, const float* pre, Index stride, Index tokens, Index words,
                     std::uint32_t* bits, std::uint32_t* counts, const Index* size,
                     Index* size_before) {
    CLT_SHARED(float2, shared_row, 1);
    const Index t = blockIdx.x;
    if (threadIdx.x == 0) {
        shared_row[0] = scan.row_of(t);
        if (t == 0) *size_before = *size;
    }
    __syncthreads();
    const float2 row = shared_row[0];
    const float* p = pre + t * stride;
    const int lane = lane_of_thread();
    int count = 0;
    for (Index first = static_cast<Index>(warp_of_thread()) * words_at_once; first < words;
         first += row_threads / warp_lanes * words_at_once) {
        float value[words_at_once];
#pragma unroll
        for (int k = 0; k < words_at_once; ++k) {
            const Index token = (first + k) * warp_lanes + lane;
            value[k] = token < tokens ? p[token] : 0.0F;
        }
        std::uint32_t own = 0;
#pragma unroll
        for (int k = 0; k < words_at_once; ++k) {
            const Index token = (first + k) * warp_lanes + lane;
            const bool passed = token < tokens && scan.passes(value[k], token, row);
            const std::uint32_t word = __ballot_sync(all_lanes, passed);
            if (lane == k) own = word;
        }
        if (lane < words_at_once && first + lane < words) {
            bits[t * words + first + lane] = own;
            count += __popc(own);
        }
    }
    count = block_sum<row_threads>(count);
    if (threadIdx.x == 0) counts[t] = static_cast<std::uint32_t>(count);
}

constexpr int append_rows = 8;  // of a block, a warp each
constexpr int append_threads = append_rows * warp_lanes;
constexpr int words_of_lane = 4;  // loaded at once: all bits of a row of 4096 tokens

/// A warp a row: writes the entries of its bits where the rows before it end. Reads the counts of
/// all rows before, which is cheaper than a launch that scans them.
template <class Scan>
__global__ void append(Scan scan, const float* pre, Index stride, Index words, Index rows,
                       Index first_row, const std::uint32_t* bits, const std::uint32_t* counts,
                       const Index* size_before, CandidateArrays out) {
    const int lane = lane_of_thread();
    const int warp = warp_of_thread();
    const Index first = static_cast<Index>(blockIdx.x) * append_rows;
    Index at = 0;
    for (Index t = threadIdx.x; t < first; t += append_threads) at += counts[t];
    at = *size_before + block_sum<append_threads>(at);
    const bool in_block = lane < append_rows && first + lane < rows;
    const Index count_of_lane = in_block ? static_cast<Index>(counts[first + lane]) : 0;
    const Index up_to_lane = warp_inclusive_sum(count_of_lane);
    const Index count = __shfl_sync(all_lanes, count_of_lane, warp);
    at += __shfl_sync(all_lanes, up_to_lane, warp) - count;
    const Index t = first + warp;
    if (t == rows - 1 && lane == 0) *out.size = at + count;
    if (count == 0 || at >= out.capacity) return;

    const float* p = pre + t * stride;
    const float2 row = scan.row_of(t);
    const auto write = [&](Index to, Index token) {
        if (to >= out.capacity) return;
        const float value = p[token];
        out.row[to] = static_cast<std::int32_t>(first_row + t);
        out.token[to] = static_cast<std::int32_t>(token);
        out.pre[to] = value;
        if constexpr (Scan::ranked) out.key[to] = ordered_key(scan.score(value, row));
    };
    for (Index first_word = 0; first_word < words; first_word += words_of_lane * warp_lanes) {
        std::uint32_t ahead[words_of_lane];
#pragma unroll
        for (int k = 0; k < words_of_lane; ++k) {
            const Index w = first_word + k * warp_lanes + lane;
            ahead[k] = w < words ? bits[t * words + w] : 0;
        }
#pragma unroll
        for (int k = 0; k < words_of_lane; ++k) {
            const std::uint32_t own = ahead[k];
            unsigned left = __ballot_sync(all_lanes, own != 0);
            if (left == 0) continue;
            const Index word_of_group = first_word + k * warp_lanes;
            const int n = __popc(own);
            const int up_to = warp_inclusive_sum(n);
            const int total = __shfl_sync(all_lanes, up_to, warp_lanes - 1);
            if (total <= warp_lanes) {  // few entries: every lane walks its own word
                Index to = at + up_to - n;
                for (std::uint32_t rest = own; rest != 0; rest &= rest - 1, ++to)
                    write(to, (word_of_group + lane) * warp_lanes +
                                  (__ffs(static_cast<int>(rest)) - 1));
            } else {  // many: word by word, so that entries side by side are written together
                for (; left != 0; left &= left - 1) {
                    const int source = __ffs(static_cast<int>(left)) - 1;
                    const std::uint32_t word = __shfl_sync(all_lanes, own, source);
                    const int before_word = __shfl_sync(all_lanes, up_to - n, source);
                    if ((word >> lane & 1U) != 0)
                        write(at + before_word + __popc(word & ((1U << lane) - 1)),
                              (word_of_group + source) * warp_lanes + lane);
                }
            }
            at += total;
        }
    }
}

}  // namespace

void round(DeviceMatrix<const float> from, DeviceMatrix<std::uint16_t> to, StreamHandle stream) {
    if (is_one_row(from) && is_one_row(to)) {
        from = as_one_row(from);
        to = as_one_row(to);
    }
    for_each_element(from.rows, from.cols, divides_into_4(from) && divides_into_4(to),
                     Round{from, to}, stream);
}

void tile_sums(const DeviceMatrix<const float>& tile, double* sums, StreamHandle stream) {
    CLT_LAUNCH(sum_rows, blocks_for(tile.rows, 1), row_threads, stream, tile.data, tile.stride,
               tile.cols, sums);
}

void negative_sum(const DeviceMatrix<const float>& tile, double* row_sums, double* sum,
                  StreamHandle stream) {
    CLT_LAUNCH(sum_negatives_of_rows, blocks_for(tile.rows, 1), row_threads, stream, tile.data,
               tile.stride, tile.cols, row_sums);
    add_partials(row_sums, tile.rows, 1, sum, stream);
}

void collect(const CollectRule& rule, const DeviceMatrix<const float>& tile, Index first_row,
             const CollectBounds& bounds, std::uint32_t* words, Index* size_before,
             const CandidateArrays& out, StreamHandle stream) {
    const auto run = [&](auto scan) {
        using Scan = decltype(scan);
        const Index words_of_row = (tile.cols + warp_lanes - 1) / warp_lanes;
        std::uint32_t* counts = words + tile.rows * words_of_row;
        CLT_LAUNCH(mark<Scan>, blocks_for(tile.rows, 1), row_threads, stream, scan, tile.data,
                   tile.stride, tile.cols, words_of_row, words, counts, out.size, size_before);
        CLT_LAUNCH(append<Scan>, blocks_for(tile.rows, append_rows), append_threads, stream, scan,
                   tile.data, tile.stride, words_of_row, tile.rows, first_row, words, counts,
                   size_before, out);
    };
    if (rule.activation == Activation::relu) return run(ReluScan{});
    if (rule.activation == Activation::jumprelu)
        return run(JumpReluScan{bounds.log_threshold, rule.half_window});
    const float lowest = rule.keep_negative ? -std::numeric_limits<float>::infinity()
                                            : std::numeric_limits<float>::denorm_min();
    const auto ranked = [&]<bool per_token, bool zscored>() {
        run(RankedScan<per_token, zscored>{bounds.bound, lowest, bounds.sums,
                                           static_cast<double>(bounds.sum_tokens)});
    };
    if (rule.activation == Activation::topk)
        rule.zscore ? ranked.operator()<true, true>() : ranked.operator()<true, false>();
    else
        rule.zscore ? ranked.operator()<false, true>() : ranked.operator()<false, false>();
}

}  // namespace clt::cuda
