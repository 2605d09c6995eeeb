// Loops over whole matrices. All are bound by memory: every element is read once, 16 bytes a
// thread. Sums run in double: its conversions (16 a clock and multiprocessor) still outrun memory.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/matrix.hpp"

#include <cmath>

#include "backend/cuda/elements.hpp"
#include "clt/base/float16.hpp"

namespace clt::cuda {
namespace {

constexpr int threads = 256;

// ---- column sums --------------------------------------------------------------------------------

constexpr Index least_rows_of_part = 32;
constexpr Index most_parts = 64;

Index parts_of(Index rows) {
    return std::min(most_parts, (rows + least_rows_of_part - 1) / least_rows_of_part);
}

// A thread sums its pack of columns over one part of the rows; a warp reads 512 bytes of a row.
template <int width>
__global__ void __launch_bounds__(threads)
    sum_parts_of_columns(DeviceMatrix<const float> m, Index rows_of_part, double* partials) {
    const Index col = (Index{blockIdx.x} * threads + threadIdx.x) * width;
    if (col >= m.cols) return;
    const Index first = Index{blockIdx.y} * rows_of_part;
    const Index end = min(first + rows_of_part, m.rows);
    double sum[width] = {};
#pragma unroll 4
    for (Index row = first; row < end; ++row) {
        const auto x = load<width>(m.data + row * m.stride + col);
        for (int i = 0; i < width; ++i) sum[i] += static_cast<double>(x.lane[i]);
    }
    for (int i = 0; i < width; ++i) partials[Index{blockIdx.y} * m.cols + col + i] = sum[i];
}

// A thread adds the parts of its column in order.
__global__ void __launch_bounds__(threads)
    add_parts_of_columns(const double* partials, Index parts, Index cols, float* out) {
    const Index col = Index{blockIdx.x} * threads + threadIdx.x;
    if (col >= cols) return;
    double sum = 0;
    for (Index part = 0; part < parts; ++part) sum += partials[part * cols + col];
    out[col] = static_cast<float>(sum);
}

// ---- sums of squares ----------------------------------------------------------------------------

// The thread's part of columns [first, end) of a row: every `step`-th pack, several in flight.
template <int width>
__device__ double squares_of(const float* row, Index first, Index end, Index step) {
    double sum = 0;
#pragma unroll 4
    for (Index col = first; col < end; col += step) {
        const auto x = load<width>(row + col);
        for (int i = 0; i < width; ++i) {
            const auto wide = static_cast<double>(x.lane[i]);
            sum += wide * wide;
        }
    }
    return sum;
}

// A warp takes a row.
template <int width>
__global__ void __launch_bounds__(threads)
    norms_of_rows(DeviceMatrix<const float> m, float* norms) {
    const Index row = Index{blockIdx.x} * (threads / warp_lanes) + warp_of_thread();
    if (row >= m.rows) return;
    const double sum =
        warp_sum(squares_of<width>(m.data + row * m.stride, Index{lane_of_thread()} * width, m.cols,
                                   Index{warp_lanes} * width));
    if (lane_of_thread() == 0) norms[row] = static_cast<float>(std::sqrt(sum));
}

constexpr Index segment = 4096;  // columns, so that a segment's place in the matrix costs little

// A block takes every gridDim.x-th segment of a row.
template <int width>
__global__ void __launch_bounds__(threads)
    squares_of_segments(DeviceMatrix<const float> m, Index segments_of_row, double* partials) {
    double sum = 0;
    for (Index at = blockIdx.x; at < m.rows * segments_of_row; at += gridDim.x) {
        const Index row = at / segments_of_row;
        const Index first = (at - row * segments_of_row) * segment;
        sum += squares_of<width>(m.data + row * m.stride, first + Index{threadIdx.x} * width,
                                 min(first + segment, m.cols), Index{threads} * width);
    }
    sum = block_sum<threads>(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// ---- element by element -------------------------------------------------------------------------

struct AddScaledRows {
    const float* coefficient;
    DeviceMatrix<const float> value;
    DeviceMatrix<float> g;

    template <int width>
    __device__ void run(Index row, Index col) const {
        const auto from = load<width>(value.data + row * value.stride + col);
        float* const to = g.data + row * g.stride + col;
        auto sum = load<width>(to);
        for (int i = 0; i < width; ++i) sum.lane[i] += coefficient[row] * from.lane[i];
        store(to, sum);
    }
};

struct Adam {
    AdamStep step;
    DeviceMatrix<const float> g;
    DeviceMatrix<float> value, moment1, moment2;
    DeviceMatrix<std::uint16_t> rounded;
    double* not_finite;

    template <int width>
    __device__ void run(Index row, Index col) const {
        const auto gradient = load<width>(g.data + row * g.stride + col);
        float* const p_at = value.data + row * value.stride + col;
        float* const m_at = moment1.data + row * moment1.stride + col;
        float* const v_at = moment2.data + row * moment2.stride + col;
        auto p = load<width>(p_at);
        auto m = load<width>(m_at);
        auto v = load<width>(v_at);
        bool finite = true;
        for (int i = 0; i < width; ++i)
            finite &= adam_update(step, gradient.lane[i], p.lane[i], m.lane[i], v.lane[i]);
        if (!finite && not_finite != nullptr) *not_finite = 1;
        store(p_at, p);
        store(m_at, m);
        store(v_at, v);
        if (rounded.data == nullptr) return;
        Pack<width, std::uint16_t> low;
        for (int i = 0; i < width; ++i) low.lane[i] = float_to_bfloat16(p.lane[i]);
        store(rounded.data + row * rounded.stride + col, low);
    }
};

}  // namespace

Index column_sums_scratch(Index rows, Index cols) {
    return parts_of(rows) * cols;
}

void column_sums(DeviceMatrix<const float> m, double* scratch, float* out, StreamHandle stream) {
    const Index parts = parts_of(m.rows);
    if (parts > 0) {
        const Index rows_of_part = (m.rows + parts - 1) / parts;
        const auto y = static_cast<unsigned>(parts);
        if (divides_into_4(m))
            CLT_LAUNCH(sum_parts_of_columns<4>, dim3(blocks_for(m.cols, 4 * threads), y),
                       dim3(threads), stream, m, rows_of_part, scratch);
        else
            CLT_LAUNCH(sum_parts_of_columns<1>, dim3(blocks_for(m.cols, threads), y), dim3(threads),
                       stream, m, rows_of_part, scratch);
    }
    CLT_LAUNCH(add_parts_of_columns, dim3(blocks_for(m.cols, threads)), dim3(threads), stream,
               scratch, parts, m.cols, out);
}

void row_norms(DeviceMatrix<const float> m, float* norms, StreamHandle stream) {
    const dim3 grid(blocks_for(m.rows, threads / warp_lanes));
    if (divides_into_4(m))
        CLT_LAUNCH(norms_of_rows<4>, grid, dim3(threads), stream, m, norms);
    else
        CLT_LAUNCH(norms_of_rows<1>, grid, dim3(threads), stream, m, norms);
}

void add_scaled_rows(const float* coefficient, DeviceMatrix<const float> value,
                     DeviceMatrix<float> g, StreamHandle stream) {
    for_each_element(g.rows, g.cols, divides_into_4(value) && divides_into_4(g),
                     AddScaledRows{coefficient, value, g}, stream);
}

Index squared_norm_scratch(Index rows, Index cols) {
    const Index segments =
        std::max((rows * cols + segment - 1) / segment, rows * ((cols + segment - 1) / segment));
    return std::min(most_partials, segments);
}

void squared_norm(DeviceMatrix<const float> m, double* scratch, double* sum, StreamHandle stream) {
    if (is_one_row(m)) m = as_one_row(m);
    const Index segments_of_row = (m.cols + segment - 1) / segment;
    const Index blocks = std::min(most_partials, m.rows * segments_of_row);
    if (blocks == 0) return;
    const dim3 grid(static_cast<unsigned>(blocks));
    if (divides_into_4(m))
        CLT_LAUNCH(squares_of_segments<4>, grid, dim3(threads), stream, m, segments_of_row,
                   scratch);
    else
        CLT_LAUNCH(squares_of_segments<1>, grid, dim3(threads), stream, m, segments_of_row,
                   scratch);
    add_partials(scratch, blocks, 1, sum, stream);
}

void adam(const AdamStep& step, DeviceMatrix<const float> g, DeviceMatrix<float> value,
          DeviceMatrix<float> moment1, DeviceMatrix<float> moment2,
          DeviceMatrix<std::uint16_t> rounded, double* not_finite, StreamHandle stream) {
    const bool rounds = rounded.data != nullptr;
    if (is_one_row(g) && is_one_row(value) && is_one_row(moment1) && is_one_row(moment2) &&
        (!rounds || is_one_row(rounded))) {
        g = as_one_row(g);
        value = as_one_row(value);
        moment1 = as_one_row(moment1);
        moment2 = as_one_row(moment2);
        rounded = as_one_row(rounded);
    }
    const bool packed = divides_into_4(g) && divides_into_4(value) && divides_into_4(moment1) &&
                        divides_into_4(moment2) && (!rounds || divides_into_4(rounded));
    for_each_element(g.rows, g.cols, packed,
                     Adam{step, g, value, moment1, moment2, rounded, not_finite}, stream);
}

}  // namespace clt::cuda
