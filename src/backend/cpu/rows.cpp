// Weight rows and their update in one visit: the gradient of a row is summed over the tokens of its
// feature, used and forgotten; no dense gradient exists. A thread owns rows and walks each from end
// to end, so weights and moments stream from memory; the source (gradient or inputs) is gathered by
// token from the outer cache. Panels of columns, with the source in the L2, measured three times as
// slow: the rows then come in pieces of 512 bytes.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/cpu/simd.hpp"
#include "backend/shapes.hpp"

namespace clt {

using cpu::lanes;
using cpu::row_of;

namespace {

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

// g[0 .. 16 N) of one row; the entries' dot products on the way.
template <int N, bool dot>
void gather(const Rows& rows, Index begin, Index end, float coefficient, const float* source,
            const float* weight, float* gradient) {
    cpu::Vec w[N];
    cpu::Vec g[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        w[n] = cpu::load(weight + n * lanes);
        g[n] = coefficient * w[n];
    }
    for (Index i = begin; i < end; ++i) {
        const float* x = source + rows.token[i] * rows.source.stride;
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
void gather_tail(const Rows& rows, Index begin, Index end, float coefficient, const float* source,
                 Index width, const float* weight, float* gradient) {
    for (Index j = 0; j < width; ++j) gradient[j] = coefficient * weight[j];
    for (Index i = begin; i < end; ++i) {
        const float* x = source + rows.token[i] * rows.source.stride;
        float product = 0;
        for (Index j = 0; j < width; ++j) {
            gradient[j] += rows.factor[i] * x[j];
            if constexpr (dot) product += x[j] * weight[j];
        }
        if constexpr (dot) rows.dot[i] += product;
    }
}

// One row: a block's gradient is made, then used while it is in the L1. Returns the sum of its
// squares when nothing is updated; else sets broken when what it wrote is not finite.
template <bool dot>
double visit_row(const Rows& rows, Index row, int& broken) {
    const Index begin = rows.row_start[row];
    const Index end = rows.row_start[row + 1];
    const Index width = rows.params.value.cols;
    const float coefficient = rows.coefficient == nullptr ? 0 : rows.coefficient[row];
    if (begin == end && coefficient == 0 && rows.adam == nullptr) return 0;
    const float* source = raw(rows.source);
    float* p = row_of(rows.params.value, row);
    float* m = row_of(rows.params.moment1, row);
    float* v = row_of(rows.params.moment2, row);
    alignas(64) float gradient[8 * lanes];
    double squares = 0;
    int wrote_broken = 0;
    const auto use = [&](Index at, Index n) {
        if (rows.adam == nullptr) {
            squares += cpu::sum_of_squares(gradient, n);
            return;
        }
#pragma omp simd reduction(| : wrote_broken)
        for (Index j = 0; j < n; ++j)
            wrote_broken |=
                adam_update(*rows.adam, gradient[j], p[at + j], m[at + j], v[at + j]) ? 0 : 1;
    };
    const Index rest = cpu::for_blocks(width, [&]<int n>(std::integral_constant<int, n>, Index at) {
        gather<n, dot>(rows, begin, end, coefficient, source + at, p + at, gradient);
        use(at, n * lanes);
    });
    if (rest < width) {
        gather_tail<dot>(rows, begin, end, coefficient, source + rest, width - rest, p + rest,
                         gradient);
        use(rest, width - rest);
    }
    broken |= wrote_broken;
    return squares;
}

// of_row: scratch of [rows]. The squares of all rows are added to total where nothing is updated.
void visit(const Rows& rows, double* of_row, Span<double> total) {
    const Index count = rows.params.value.rows;
    int broken = 0;
#pragma omp parallel reduction(| : broken)
    {
        const Shard range =
            thread_rows(rows.row_start, count, omp_get_thread_num(), omp_get_num_threads());
        for (Index row = range.begin; row < range.end; ++row)
            of_row[row] = rows.dot != nullptr ? visit_row<true>(rows, row, broken)
                                              : visit_row<false>(rows, row, broken);
    }
    if (broken != 0) cpu::raise(rows.params.not_finite);
    if (rows.adam != nullptr) return;
    double sum = 0;
    for (Index row = 0; row < count; ++row) sum += of_row[row];
    *raw(total) += sum;
}

}  // namespace

void CpuBackend::decoder_rows(ActiveSet& active, Index layer, Index features,
                              Matrix<const float> gradient, Span<const float> coefficient,
                              bool activations, const AdamStep* adam, ParamRows params,
                              Span<double> squares) {
    CLT_CHECK(gradient.rows == active.tokens);
    CLT_CHECK(params.value.rows == features && (layer + 1) * features <= active.rows);
    CLT_CHECK(coefficient.empty() || coefficient.size() == features);
    const Rows rows{raw(active.row_start.span()) + layer * features,
                    raw(active.token.span()),
                    raw(active.value.span()),
                    activations ? raw(active.gradient.span()) : nullptr,
                    coefficient.empty() ? nullptr : raw(coefficient),
                    adam,
                    targets_of(gradient, params.value.cols),
                    params};
    visit(rows, double_scratch(features), squares);
}

void CpuBackend::encoder_rows(const ActiveSet& active, Index layer, Index features,
                              Matrix<const float> x, const AdamStep* adam, ParamRows params,
                              Span<double> squares) {
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
    visit(rows, double_scratch(features), squares);
}

}  // namespace clt
