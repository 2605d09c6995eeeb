// Weight rows and their update in one visit: the gradient of a row is summed in registers over the
// tokens of its feature, used and forgotten. A row's weight and moments stream from memory once in
// each pass; what is gathered by token is reused, so columns are walked in panels whose slice of
// the source stays in the L2 (4096 tokens of 768 columns: 12.6 MB), one launch a panel, in order.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/rows.hpp"

#include <algorithm>

#include "backend/cuda/gather.hpp"
#include "clt/backend/adam.hpp"
#include "clt/backend/plain.hpp"
#include "clt/base/float16.hpp"

namespace clt::cuda {
namespace {

constexpr int warps_of_block = 8;
constexpr int row_threads = warps_of_block * warp_lanes;
// A warp's row with more entries than this would outlast the others, and a launch ends with its
// slowest row: a warp takes an entry in some 0.3 us, a panel of all rows about 140. The mean is 3.
constexpr Index heavy_entries = 64;
// Two blocks of 256 threads fit on each of 132 SMs.
constexpr unsigned most_heavy_blocks = 256;
// 6 float4 a lane (768 columns): weight, gradient and a term fit in 128 registers, two blocks an
// SM.
constexpr int most_vectors = 6;
constexpr int sum_threads = 1024;

// How a row is stored: its weight, its moments and the weight's rounded copy, from one column on.
template <int width>
struct RowState {
    float* value;
    float* moment1;
    float* moment2;
    std::uint16_t* rounded;
    double* not_finite;

    struct Moments {
        Pack<width> first, second;
    };

    __device__ RowState(const RowVisit& visit, Index row)
        : value(visit.value + row * visit.value_stride),
          moment1(visit.moment1 + row * visit.moment1_stride),
          moment2(visit.moment2 + row * visit.moment2_stride),
          rounded(visit.rounded == nullptr ? nullptr : visit.rounded + row * visit.rounded_stride),
          not_finite(visit.not_finite) {}

    __device__ Pack<width> weight(int column) const { return load_once<width>(value + column); }
    __device__ Moments moments(int column) const {
        return {load_once<width>(moment1 + column), load_once<width>(moment2 + column)};
    }
    // One Adam step of these columns; their weight and moments have been read before.
    __device__ void update(const AdamStep& adam, int column, const Pack<width>& g, Pack<width> p,
                           Moments state) const {
        bool finite = true;
#pragma unroll
        for (int i = 0; i < width; ++i)
            finite &=
                adam_update(adam, g.lane[i], p.lane[i], state.first.lane[i], state.second.lane[i]);
        if (!finite && not_finite != nullptr) *not_finite = 1;
        store_once(value + column, p);
        store_once(moment1 + column, state.first);
        store_once(moment2 + column, state.second);
        if (rounded == nullptr) return;
        Pack<width, std::uint16_t> low;
#pragma unroll
        for (int i = 0; i < width; ++i) low.lane[i] = float_to_bfloat16(p.lane[i]);
        store(rounded + column, low);
    }
};

template <int width>
__device__ double sum_of_squares(const Pack<width>& g) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < width; ++i)
        sum += static_cast<double>(g.lane[i]) * static_cast<double>(g.lane[i]);
    return sum;
}

__device__ float coefficient_of(const RowVisit& visit, Index row) {
    return visit.coefficient == nullptr ? 0.0F : visit.coefficient[row];
}

// Panels come in order; a row's squares are those of the panels so far.
__device__ void add_row_squares(double* row_squares, Index row, bool first_panel, double squares) {
    row_squares[row] = first_panel ? squares : row_squares[row] + squares;
}

// The row's gradient, less its coefficient's part, from `count` entries of it.
template <int width, int vectors, bool with_dot>
__device__ void gather_row(const RowVisit& visit, Index begin, Index count,
                           const Pack<width> (&weight)[vectors], Pack<width> (&g)[vectors]) {
    constexpr int in_flight = vectors > 4 ? 1 : vectors > 2 ? 2 : 4;  // by registers
    const GatherSource from{visit.source, visit.source_stride, static_cast<int>(visit.width)};
    const std::int32_t* token = visit.token + begin;
    const float* factor = visit.factor + begin;
    float* dot = with_dot ? visit.dot + begin : nullptr;
    gather<width, vectors, in_flight, with_dot>(
        from, static_cast<int>(count),
        [&](int i) {
            return Term{token[i], factor[i]};
        },
        weight, g, [&](int i, float product) { dot[i] += product; });
}

// A warp takes a row: everything it reads of the row it reads once.
template <int width, int vectors, bool with_dot, bool update>
__device__ void visit_light_row(const RowVisit& visit, Index row, double* row_squares,
                                bool first_panel) {
    const Index begin = visit.row_start[row];
    const Index end = visit.row_start[row + 1];
    const float coefficient = coefficient_of(visit, row);
    if (end - begin > heavy_entries) return;
    if (!update && begin == end && coefficient == 0) {
        if (lane_of_thread() == 0) add_row_squares(row_squares, row, first_panel, 0);
        return;
    }
    const RowState<width> state(visit, row);
    const auto columns = static_cast<int>(visit.width);
    Pack<width> p[vectors] = {};
    Pack<width> g[vectors] = {};
    if (with_dot || update || coefficient != 0) {
#pragma unroll
        for (int n = 0; n < vectors; ++n)
            if (column_of<width>(n) < columns) p[n] = state.weight(column_of<width>(n));
    }
    gather_row<width, vectors, with_dot>(visit, begin, end - begin, p, g);
#pragma unroll
    for (int n = 0; n < vectors; ++n) add_scaled(g[n], coefficient, p[n]);
    if constexpr (update) {
        constexpr int at_once = vectors % 3 == 0 ? 3 : 2;  // of the registers that the terms had
#pragma unroll
        for (int first = 0; first < vectors; first += at_once) {
            typename RowState<width>::Moments moments[at_once];
#pragma unroll
            for (int n = 0; n < at_once; ++n)
                if (column_of<width>(first + n) < columns)
                    moments[n] = state.moments(column_of<width>(first + n));
#pragma unroll
            for (int n = 0; n < at_once; ++n)
                if (column_of<width>(first + n) < columns)
                    state.update(visit.adam, column_of<width>(first + n), g[first + n],
                                 p[first + n], moments[n]);
        }
    } else {
        double squares = 0;
#pragma unroll
        for (int n = 0; n < vectors; ++n) squares += sum_of_squares(g[n]);
        squares = warp_sum(squares);
        if (lane_of_thread() == 0) add_row_squares(row_squares, row, first_panel, squares);
    }
}

// A block takes a row: its warps take equal parts of the entries, then its threads the columns.
template <int width, int vectors, bool with_dot, bool update>
__device__ void visit_heavy_row(const RowVisit& visit, Index row, double* row_squares,
                                bool first_panel) {
    const Index begin = visit.row_start[row];
    const Index count = visit.row_start[row + 1] - begin;
    const RowState<width> state(visit, row);
    const auto columns = static_cast<int>(visit.width);
    Pack<width> p[vectors] = {};
    Pack<width> part[vectors] = {};
    if constexpr (with_dot) {
#pragma unroll
        for (int n = 0; n < vectors; ++n)
            if (column_of<width>(n) < columns) p[n] = state.weight(column_of<width>(n));
    }
    const Shard own = shard_of(count, warp_of_thread(), warps_of_block);
    gather_row<width, vectors, with_dot>(visit, begin + own.begin, own.size(), p, part);
    Pack<width> g = sum_of_warps<warps_of_block, width>(part);
    const int column = static_cast<int>(threadIdx.x) * width;
    double squares = 0;
    if (column < columns) {
        const Pack<width> weight = state.weight(column);
        add_scaled(g, coefficient_of(visit, row), weight);
        if constexpr (update)
            state.update(visit.adam, column, g, weight, state.moments(column));
        else
            squares = sum_of_squares(g);
    }
    if constexpr (!update) {
        squares = block_sum<row_threads>(squares);
        if (threadIdx.x == 0) add_row_squares(row_squares, row, first_panel, squares);
    }
}

// Every heavy row of rows blockIdx.x, blockIdx.x + blocks, ...: a thread looks at one row at a
// time.
template <int width, int vectors, bool with_dot, bool update>
__device__ void visit_heavy_rows(const RowVisit& visit, unsigned blocks, double* row_squares,
                                 bool first_panel) {
    CLT_SHARED(unsigned, heavy_of_warp, warps_of_block);
    for (Index first = blockIdx.x; first < visit.rows; first += Index{blocks} * row_threads) {
        const Index own = first + Index{threadIdx.x} * blocks;
        const bool heavy =
            own < visit.rows && visit.row_start[own + 1] - visit.row_start[own] > heavy_entries;
        const unsigned of_own_warp = __ballot_sync(all_lanes, heavy);
        __syncthreads();  // the loop before may still be reading
        if (lane_of_thread() == 0) heavy_of_warp[warp_of_thread()] = of_own_warp;
        __syncthreads();
        for (int warp = 0; warp < warps_of_block; ++warp)
            for (unsigned rest = heavy_of_warp[warp]; rest != 0; rest &= rest - 1) {
                const int thread = warp * warp_lanes + __ffs(static_cast<int>(rest)) - 1;
                visit_heavy_row<width, vectors, with_dot, update>(
                    visit, first + Index{thread} * blocks, row_squares, first_panel);
            }
    }
}

// One panel of all rows. The first `heavy_blocks` blocks share the heavy rows, so that these begin
// first and the light rows hide them; a warp of the others takes one light row. Memory sees a row's
// weight and moments once, the L2 a panel of the source for every entry.
template <int width, int vectors, bool with_dot, bool update>
__global__ void __launch_bounds__(row_threads, 2)
    visit_panel(RowVisit visit, unsigned heavy_blocks, double* row_squares, bool first_panel) {
    if (blockIdx.x < heavy_blocks) {
        visit_heavy_rows<width, vectors, with_dot, update>(visit, heavy_blocks, row_squares,
                                                           first_panel);
        return;
    }
    const Index row = Index{blockIdx.x - heavy_blocks} * warps_of_block + warp_of_thread();
    if (row < visit.rows)
        visit_light_row<width, vectors, with_dot, update>(visit, row, row_squares, first_panel);
}

struct PanelLaunch {
    RowVisit visit;  // its columns are the panel's
    double* row_squares;
    bool first_panel;
    StreamHandle stream;

    template <int width, int vectors, bool with_dot, bool update>
    void run() const {
        const unsigned light_blocks = blocks_for(visit.rows, warps_of_block);
        const unsigned heavy_blocks = std::min(light_blocks, most_heavy_blocks);
        CLT_LAUNCH((visit_panel<width, vectors, with_dot, update>), heavy_blocks + light_blocks,
                   row_threads, stream, visit, heavy_blocks, row_squares, first_panel);
    }
    template <int width, int vectors>
    void run() const {
        if (visit.dot != nullptr)
            visit.update ? run<width, vectors, true, true>() : run<width, vectors, true, false>();
        else
            visit.update ? run<width, vectors, false, true>() : run<width, vectors, false, false>();
    }
    void run(bool vectorised) const {
        if (!vectorised)
            run<1, most_vectors>();
        else if (visit.width <= 2 * 4 * warp_lanes)
            run<4, 2>();
        else if (visit.width <= 4 * 4 * warp_lanes)
            run<4, 4>();
        else
            run<4, most_vectors>();
    }
};

bool holds_vectors(const RowVisit& visit) {
    return visit.width % 4 == 0 && rows_hold_packs(visit.source, visit.source_stride) &&
           rows_hold_packs(visit.value, visit.value_stride) &&
           rows_hold_packs(visit.moment1, visit.moment1_stride) &&
           rows_hold_packs(visit.moment2, visit.moment2_stride) &&
           rows_hold_packs(visit.rounded, visit.rounded_stride);
}

RowVisit panel_of(const RowVisit& visit, Shard columns) {
    RowVisit panel = visit;
    panel.width = columns.size();
    panel.source += columns.begin;
    panel.value += columns.begin;
    panel.moment1 += columns.begin;
    panel.moment2 += columns.begin;
    if (panel.rounded != nullptr) panel.rounded += columns.begin;
    return panel;
}

}  // namespace

void visit_rows(const RowVisit& visit, double* row_squares, StreamHandle stream) {
    if (visit.rows == 0 || visit.width == 0) return;
    const bool vectorised = holds_vectors(visit);
    const Index vector = vectorised ? 4 : 1;
    const Index vectors = visit.width / vector;
    const Index panels = blocks_for(vectors, most_vectors * warp_lanes);
    for (Index panel = 0; panel < panels; ++panel) {
        const Shard part = shard_of(vectors, panel, panels);
        PanelLaunch{panel_of(visit, {part.begin * vector, part.end * vector}), row_squares,
                    panel == 0, stream}
            .run(vectorised);
    }
    if (!visit.update)
        CLT_LAUNCH(add_partials_kernel<sum_threads>, 1, sum_threads, stream, row_squares,
                   visit.rows, 1.0, visit.squares);
}

}  // namespace clt::cuda
