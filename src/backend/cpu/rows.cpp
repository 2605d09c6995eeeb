// Weight rows and their update in one visit: the gradient of a row is summed over the tokens of its
// feature, used and forgotten; no dense gradient exists. A thread owns rows. The source matrix
// (gradient or inputs) is packed into panels of columns, and a thread walks its rows once a panel:
// what it gathers by token then comes from its L2, while weights and moments stream.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/cpu/simd.hpp"

namespace clt {

using cpu::lanes;
using cpu::row_of;

namespace {

constexpr Index panel_columns = 128;  // 8 registers of 16 for the weights, 8 for the gradient

struct Rows {
    const Index* row_start;  // of the first row
    const std::int32_t* token;
    const float* factor;       // [entries]: g += factor * source[token]
    float* dot;                // [entries] += <source[token], weight>, may be null
    const float* coefficient;  // [rows]: g += coefficient * weight, may be null
    const AdamStep* adam;      // null: the gradient's squares are summed
    Matrix<const float> source;
    ParamRows params;
};

// Row r's share of the work: entries, and the streams of weights and moments.
constexpr Index cost_of_row = 8;

Index row_at_cost(const Index* row_start, Index rows, Index cost) {
    Index low = 0;
    Index high = rows;
    while (low < high) {
        const Index middle = (low + high) / 2;
        if (row_start[middle] - row_start[0] + middle * cost_of_row < cost)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Rows of thread `part`; all threads' ranges tile the rows.
Shard thread_rows(const Index* row_start, Index rows, Index part, Index parts) {
    const Index total = row_start[rows] - row_start[0] + rows * cost_of_row;
    const Shard cost = shard_of(total, part, parts);
    return {row_at_cost(row_start, rows, cost.begin),
            part + 1 == parts ? rows : row_at_cost(row_start, rows, cost.end)};
}

// g[0 .. 16 N) of one row from a panel's columns; the entries' dot products on the way.
template <int N, bool dot>
void gather(const Rows& rows, Index begin, Index end, float coefficient, const float* panel,
            const float* weight, float* gradient) {
    cpu::Vec w[N];
    cpu::Vec g[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        w[n] = cpu::load(weight + n * lanes);
        g[n] = coefficient * w[n];
    }
    for (Index i = begin; i < end; ++i) {
        const float* x = panel + rows.token[i] * panel_columns;
        const float factor = rows.factor[i];
        cpu::Vec product{};
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const cpu::Vec v = cpu::load(x + n * lanes);
            g[n] += factor * v;
            if constexpr (dot) product += v * w[n];
        }
        if constexpr (dot) rows.dot[i] += cpu::sum(product);
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) cpu::store(gradient + n * lanes, g[n]);
}

template <bool dot>
void gather_tail(const Rows& rows, Index begin, Index end, float coefficient, const float* panel,
                 Index width, const float* weight, float* gradient) {
    for (Index j = 0; j < width; ++j) gradient[j] = coefficient * weight[j];
    for (Index i = begin; i < end; ++i) {
        const float* x = panel + rows.token[i] * panel_columns;
        float product = 0;
        for (Index j = 0; j < width; ++j) {
            gradient[j] += rows.factor[i] * x[j];
            if constexpr (dot) product += x[j] * weight[j];
        }
        if constexpr (dot) rows.dot[i] += product;
    }
}

template <bool dot>
void gather_panel(const Rows& rows, Index begin, Index end, float coefficient, const float* panel,
                  Index width, const float* weight, float* gradient) {
    const auto block = [&]<int n>(std::integral_constant<int, n>) {
        if (width < n * lanes) return;
        gather<n, dot>(rows, begin, end, coefficient, panel, weight, gradient);
        panel += n * lanes;
        weight += n * lanes;
        gradient += n * lanes;
        width -= n * lanes;
    };
    block(std::integral_constant<int, 8>{});
    block(std::integral_constant<int, 4>{});
    block(std::integral_constant<int, 2>{});
    block(std::integral_constant<int, 1>{});
    if (width > 0) gather_tail<dot>(rows, begin, end, coefficient, panel, width, weight, gradient);
}

void update(const AdamStep& step, Index n, const float* g, float* p, float* m, float* v) {
#pragma omp simd
    for (Index j = 0; j < n; ++j) adam_update(step, g[j], p[j], m[j], v[j]);
}

// Rows [range) at columns [first, first + width); squares[row] += squared gradient.
template <bool dot>
void walk(const Rows& rows, Shard range, Index first, Index width, const float* panel,
          double* squares) {
    alignas(64) float gradient[panel_columns];
    for (Index row = range.begin; row < range.end; ++row) {
        const Index begin = rows.row_start[row];
        const Index end = rows.row_start[row + 1];
        float* p = row_of(rows.params.value, row) + first;
        const float coefficient = rows.coefficient == nullptr ? 0 : rows.coefficient[row];
        if (begin == end && coefficient == 0) {
            if (rows.adam == nullptr) continue;
            std::fill_n(gradient, width, 0.0F);
        } else {
            gather_panel<dot>(rows, begin, end, coefficient, panel, width, p, gradient);
        }
        if (rows.adam != nullptr)
            update(*rows.adam, width, gradient, p, row_of(rows.params.moment1, row) + first,
                   row_of(rows.params.moment2, row) + first);
        else
            squares[row] += cpu::sum_of_squares(gradient, width);
    }
}

// scratch: [panels, tokens, panel_columns]; squares: [rows].
double visit(const Rows& rows, float* scratch, double* squares) {
    const Index count = rows.params.value.rows;
    const Index cols = rows.params.value.cols;
    const Index tokens = rows.source.rows;
    const Index panels = (cols + panel_columns - 1) / panel_columns;
    std::fill_n(squares, count, 0.0);
#pragma omp parallel
    {
#pragma omp for collapse(2) schedule(static)
        for (Index panel = 0; panel < panels; ++panel)
            for (Index token = 0; token < tokens; ++token) {
                const Index first = panel * panel_columns;
                std::copy_n(row_of(rows.source, token) + first,
                            std::min(panel_columns, cols - first),
                            scratch + (panel * tokens + token) * panel_columns);
            }
        const Shard range =
            thread_rows(rows.row_start, count, omp_get_thread_num(), omp_get_num_threads());
        for (Index panel = 0; panel < panels; ++panel) {
            const Index first = panel * panel_columns;
            const Index width = std::min(panel_columns, cols - first);
            const float* packed = scratch + panel * tokens * panel_columns;
            if (rows.dot != nullptr)
                walk<true>(rows, range, first, width, packed, squares);
            else
                walk<false>(rows, range, first, width, packed, squares);
        }
    }
    double sum = 0;
    for (Index row = 0; row < count; ++row) sum += squares[row];
    return sum;
}

}  // namespace

double CpuBackend::decoder_rows(ActiveSet& active, Index layer, Index features,
                                Matrix<const float> gradient, Span<const float> coefficient,
                                bool activations, const AdamStep* adam, ParamRows params) {
    const Index width = params.value.cols;
    CLT_CHECK(gradient.rows == active.tokens && width <= gradient.cols);
    CLT_CHECK(params.value.rows == features && (layer + 1) * features <= active.rows);
    CLT_CHECK(coefficient.empty() || coefficient.size() == features);
    // A row of layer l ends with the last target, as G does.
    const Index first = gradient.cols - width;
    const Matrix<const float> targets(
        gradient.elements.subspan(first, gradient.elements.size() - first), gradient.rows, width,
        gradient.stride);
    const Rows rows{raw(active.row_start.span()) + layer * features,
                    raw(active.token.span()),
                    raw(active.value.span()),
                    activations ? raw(active.gradient.span()) : nullptr,
                    coefficient.empty() ? nullptr : raw(coefficient),
                    adam,
                    targets,
                    params};
    const Index panels = (width + panel_columns - 1) / panel_columns;
    return visit(rows, float_scratch(panels * gradient.rows * panel_columns),
                 double_scratch(features));
}

double CpuBackend::encoder_rows(const ActiveSet& active, Index layer, Index features,
                                Matrix<const float> x, const AdamStep* adam, ParamRows params) {
    CLT_CHECK(x.rows == active.tokens && x.cols == params.value.cols);
    CLT_CHECK(params.value.rows == features && (layer + 1) * features <= active.rows);
    const Rows rows{raw(active.row_start.span()) + layer * features,
                    raw(active.token.span()),
                    raw(active.gradient.span()),
                    nullptr,
                    nullptr,
                    adam,
                    x,
                    params};
    const Index panels = (x.cols + panel_columns - 1) / panel_columns;
    return visit(rows, float_scratch(panels * x.rows * panel_columns), double_scratch(features));
}

}  // namespace clt
