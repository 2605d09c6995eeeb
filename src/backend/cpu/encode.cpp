// The encoder's tiles and what is read off them while they are still in cache.
#include <limits>

#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/elementwise.hpp"

namespace clt {

using cpu::row_of;

namespace {

// A tile of pre-activations that stays in the outer cache between the product and its scans.
constexpr Index tile_bytes = Index{4} << 20;
constexpr Index smallest_tile = 64;  // below, the product's packing of x costs more than the scans
constexpr Index largest_tile = 1024;
constexpr Index tile_multiple = 16;

// Tokens looked at together. Few entries pass a good bound, so most blocks end after the compare,
// which vectorises; only a block with a hit is walked entry by entry.
constexpr Index block = 64;

// Scans of one feature's tokens: passes(p, token), and score(p) to rank by.

template <bool per_token>
struct RawScan {
    static constexpr bool ranked = true;
    const float* bound;
    float lowest;

    float score(float p) const { return p; }
    bool passes(float p, Index token) const {
        return (p >= bound[per_token ? token : 0]) & (p >= lowest);
    }
};

template <bool per_token>
struct ZscoreScan {
    static constexpr bool ranked = true;
    const float* bound;
    float lowest;
    ColumnMoments column;

    float score(float p) const { return zscore(p, column); }
    bool passes(float p, Index token) const {
        return (score(p) >= bound[per_token ? token : 0]) & (p >= lowest);
    }
};

struct JumpReluScan {
    static constexpr bool ranked = false;
    float theta;
    float half_window;

    bool passes(float p, Index) const { return (p >= theta) | in_window(p, theta, half_window); }
};

struct ReluScan {
    static constexpr bool ranked = false;

    bool passes(float p, Index) const { return p > 0; }
};

template <class Scan>
Index count_row(const Scan scan, const float* p, Index n) {
    std::int32_t passed = 0;
    for (Index i = 0; i < n; ++i) passed += scan.passes(p[i], i) ? 1 : 0;
    return passed;
}

struct Entries {
    std::int32_t* row;
    std::int32_t* token;
    float* pre;
    std::uint32_t* key;
    Index capacity;
};

template <class Scan>
void append_row(const Scan scan, std::int32_t row, const float* p, Index n, Index at,
                const Entries& out) {
    for (Index first = 0; first < n; first += block) {
        const Index end = std::min(first + block, n);
        std::int32_t any = 0;
        for (Index i = first; i < end; ++i) any |= scan.passes(p[i], i) ? 1 : 0;
        if (any == 0) continue;
        for (Index i = first; i < end; ++i) {
            if (!scan.passes(p[i], i)) continue;
            if (at == out.capacity) return;
            out.row[at] = row;
            out.token[at] = static_cast<std::int32_t>(i);
            out.pre[at] = p[i];
            if constexpr (Scan::ranked) out.key[at] = ordered_key(scan.score(p[i]));
            ++at;
        }
    }
}

// Rows are counted, then written where the counts say: entries come out ascending for any number
// of threads, and the second scan reads the cache.
template <class MakeScan>
void collect_rows(const Matrix<const float>& pre, Index first_row, Index* starts, Candidates& out,
                  MakeScan make_scan) {
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t)
        starts[t + 1] = count_row(make_scan(t), row_of(pre, t), pre.cols);
    Index& size = *raw(out.size.span());
    starts[0] = size;
    for (Index t = 0; t < pre.rows; ++t) starts[t + 1] += starts[t];
    size = starts[pre.rows];
    const Entries entries{raw(out.row.span()), raw(out.token.span()), raw(out.pre.span()),
                          raw(out.key.span()), out.capacity()};
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t)
        if (starts[t + 1] > starts[t] && starts[t] < entries.capacity)
            append_row(make_scan(t), static_cast<std::int32_t>(first_row + t), row_of(pre, t),
                       pre.cols, starts[t], entries);
}

}  // namespace

Index CpuBackend::encode_tile(Index tokens, Index /*d_model*/) const {
    const Index fits =
        tile_bytes / (static_cast<Index>(sizeof(float)) * std::max<Index>(tokens, 1));
    return std::clamp(fits / tile_multiple * tile_multiple, smallest_tile, largest_tile);
}

void CpuBackend::round(Matrix<const float> from, Matrix<Bfloat16> to) {
    CLT_CHECK(from.rows == to.rows && from.cols == to.cols);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < from.rows; ++t)
        for (Index j = 0; j < from.cols; ++j)
            row_of(to, t)[j].bits = float_to_bfloat16(row_of(from, t)[j]);
}

void CpuBackend::encode(const EncoderOperand& x, const EncoderOperand& weight,
                        Span<const float> bias, Matrix<float> pre) {
    CLT_CHECK(bias.size() == weight.value.rows && pre.rows == weight.value.rows &&
              pre.cols == x.value.rows);
    const float* b = raw(bias);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t) std::fill_n(row_of(pre, t), pre.cols, b[t]);
    gemm(false, true, 1, weight.value, x.value, 1, pre);
}

void CpuBackend::tile_sums(Matrix<const float> pre, Span<double> sums) {
    CLT_CHECK(sums.size() == 2 * pre.rows);
    double* out = raw(sums);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < pre.rows; ++t) {
        const float* p = row_of(pre, t);
        double sum = 0;
        double squared = 0;
#pragma omp simd reduction(+ : sum, squared)
        for (Index b = 0; b < pre.cols; ++b) {
            const auto value = static_cast<double>(p[b]);
            sum += value;
            squared += value * value;
        }
        out[2 * t] = sum;
        out[2 * t + 1] = squared;
    }
}

void CpuBackend::negative_sum(Matrix<const float> pre, Span<double> total) {
    *raw(total) += cpu::ordered_sum<double>(pre.rows, [&](Index t) {
        const float* p = row_of(pre, t);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Index b = 0; b < pre.cols; ++b)
            sum -= p[b] >= 0 ? 0.0 : static_cast<double>(p[b]);  // a NaN goes into the sum
        return sum;
    });
}

void CpuBackend::collect(const CollectRule& rule, Matrix<const float> pre, Index first_row,
                         Span<const double> sums, Index sum_tokens, Span<const float> bound,
                         Span<const float> log_threshold, Candidates& out) {
    CLT_CHECK(out.size.size() == 1, "candidates that were never reset");
    const auto run = [&](auto make_scan) {
        collect_rows(pre, first_row, index_scratch(pre.rows + 1), out, make_scan);
    };
    if (rule.activation == Activation::relu) return run([](Index) { return ReluScan{}; });
    if (rule.activation == Activation::jumprelu) {
        CLT_CHECK(log_threshold.size() == pre.rows);
        return run([log_theta = raw(log_threshold), h = rule.half_window](Index t) {
            return JumpReluScan{jumprelu_threshold(log_theta[t]), h};
        });
    }

    const bool per_token = rule.activation == Activation::topk;
    CLT_CHECK(bound.size() == (per_token ? pre.cols : 1));
    const float* b = raw(bound);
    // p > 0 written as p >= lowest: one compare that vectorises whatever the rule.
    const float lowest = rule.keep_negative ? -std::numeric_limits<float>::infinity()
                                            : std::numeric_limits<float>::denorm_min();
    if (rule.zscore) {
        CLT_CHECK(sums.size() == 2 * pre.rows);
        const auto column = [s = raw(sums), n = static_cast<double>(sum_tokens)](Index t) {
            return column_moments(s[2 * t], s[2 * t + 1], n);
        };
        if (per_token)
            run([=](Index t) { return ZscoreScan<true>{b, lowest, column(t)}; });
        else
            run([=](Index t) { return ZscoreScan<false>{b, lowest, column(t)}; });
    } else {
        if (per_token)
            run([=](Index) { return RawScan<true>{b, lowest}; });
        else
            run([=](Index) { return RawScan<false>{b, lowest}; });
    }
}

}  // namespace clt
