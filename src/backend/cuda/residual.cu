// The residual, its loss and its gradient, and the sums that evaluation keeps of them: one pass
// over memory, then a second kernel that adds the blocks' sums in their order.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/residual.hpp"

#include <algorithm>

#include "backend/cuda/gather.hpp"

namespace clt::cuda {
namespace {

constexpr int residual_threads = 256;
// Enough for 3072 blocks of 4096 tokens and 12 layers, few enough for one reduction in 48 rows.
constexpr Index block_tokens = 16;
constexpr Index part_tokens = 64;
constexpr Index most_parts = 64;

// A block takes a layer of some tokens: 3 floats read and 2 written an element, with 16 bytes an
// access. partial: [layers, groups].
template <int width>
__global__ void __launch_bounds__(residual_threads)
    residual_block(Residual r, unsigned groups, double* partial) {
    const Index layer = blockIdx.x / groups;
    const Index first = Index{blockIdx.x % groups} * block_tokens;
    const Index end = min(r.tokens, first + block_tokens);
    double squared = 0;
    for (Index j = Index{threadIdx.x} * width; j < r.d; j += residual_threads * width) {
        const Index column = layer * r.d + j;
        const Pack<width> bias = load<width>(r.bias + column);
        const Pack<width> scale = load<width>(r.scale + column);
#pragma unroll 2
        for (Index token = first; token < end; ++token) {
            float* error = r.error + token * r.error_stride + column;
            Pack<width> e = load_once<width>(error);
            const Pack<width> y = load_once<width>(r.target + token * r.target_stride + column);
            Pack<width> g;
#pragma unroll
            for (int i = 0; i < width; ++i) {
                e.lane[i] = e.lane[i] + bias.lane[i] - y.lane[i];
                const float scaled = scale.lane[i] * e.lane[i];
                g.lane[i] = r.factor * scale.lane[i] * scaled;
                squared += static_cast<double>(scaled) * static_cast<double>(scaled);
            }
            store_once(error, e);
            store(r.gradient + token * r.gradient_stride + column, g);
        }
    }
    squared = block_sum<residual_threads>(squared);
    if (threadIdx.x == 0) partial[blockIdx.x] = squared;
}

// A block a layer.
__global__ void __launch_bounds__(residual_threads)
    sum_groups(const double* partial, Index groups, double* squared_error) {
    double sum = 0;
    for (Index group = threadIdx.x; group < groups; group += residual_threads)
        sum += partial[Index{blockIdx.x} * groups + group];
    sum = block_sum<residual_threads>(sum);
    if (threadIdx.x == 0) squared_error[blockIdx.x] = sum;
}

Index evaluation_parts(Index tokens) {
    return std::min(most_parts, Index{blocks_for(tokens, part_tokens)});
}

// A thread takes a column of one part of the tokens. partial: [parts, 4, cols].
__global__ void __launch_bounds__(residual_threads)
    sum_part(EvaluationSums s, Index parts, unsigned column_blocks, double* partial) {
    const Index part = blockIdx.x / column_blocks;
    const Index column = Index{blockIdx.x % column_blocks} * residual_threads + threadIdx.x;
    if (column >= s.cols) return;
    const Shard tokens = shard_of(s.tokens, part, parts);
    double y1 = 0;
    double y2 = 0;
    double e1 = 0;
    double e2 = 0;
#pragma unroll 4
    for (Index token = tokens.begin; token < tokens.end; ++token) {
        const auto y = static_cast<double>(load_once(s.target + token * s.target_stride + column));
        const auto e = static_cast<double>(load_once(s.error + token * s.error_stride + column));
        y1 += y;
        y2 += y * y;
        e1 += e;
        e2 += e * e;
    }
    double* to = partial + part * 4 * s.cols + column;
    to[0] = y1;
    to[s.cols] = y2;
    to[2 * s.cols] = e1;
    to[3 * s.cols] = e2;
}

// A thread takes a column's four sums.
__global__ void __launch_bounds__(residual_threads)
    add_parts(EvaluationSums s, Index parts, const double* partial) {
    const Index column = Index{blockIdx.x} * residual_threads + threadIdx.x;
    if (column >= s.cols) return;
#pragma unroll
    for (int which = 0; which < 4; ++which) {
        double sum = s.sums[which][column];
        for (Index part = 0; part < parts; ++part)
            sum += partial[(part * 4 + which) * s.cols + column];
        s.sums[which][column] = sum;
    }
}

bool holds_vectors(const Residual& r) {
    return r.d % 4 == 0 && rows_hold_packs(r.error, r.error_stride) &&
           rows_hold_packs(r.target, r.target_stride) &&
           rows_hold_packs(r.gradient, r.gradient_stride) && rows_hold_packs(r.bias, 0) &&
           rows_hold_packs(r.scale, 0);
}

}  // namespace

Index residual_scratch(const Residual& r) {
    return r.layers * Index{blocks_for(r.tokens, block_tokens)};
}

void form_residual(const Residual& r, double* scratch, StreamHandle stream) {
    const unsigned groups = blocks_for(r.tokens, block_tokens);
    const unsigned blocks = groups * static_cast<unsigned>(r.layers);
    if (holds_vectors(r))
        CLT_LAUNCH(residual_block<4>, blocks, residual_threads, stream, r, groups, scratch);
    else
        CLT_LAUNCH(residual_block<1>, blocks, residual_threads, stream, r, groups, scratch);
    CLT_LAUNCH(sum_groups, static_cast<unsigned>(r.layers), residual_threads, stream, scratch,
               Index{groups}, r.squared_error);
}

Index evaluation_scratch(const EvaluationSums& s) {
    return evaluation_parts(s.tokens) * 4 * s.cols;
}

void add_evaluation_sums(const EvaluationSums& s, double* scratch, StreamHandle stream) {
    const Index parts = evaluation_parts(s.tokens);
    if (parts == 0) return;
    const unsigned column_blocks = blocks_for(s.cols, residual_threads);
    CLT_LAUNCH(sum_part, column_blocks * static_cast<unsigned>(parts), residual_threads, stream, s,
               parts, column_blocks, scratch);
    CLT_LAUNCH(add_parts, column_blocks, residual_threads, stream, s, parts, scratch);
}

}  // namespace clt::cuda
