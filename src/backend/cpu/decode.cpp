// Sparse decode. Not a gather by token: that reads k decoder rows for each of B tokens. Rows are
// the outer loop: each decoder row streams from memory once, stays in registers for all tokens of
// its feature, and is added to the output, which stays in the outer cache. Threads share the
// columns. Panels of 128 columns, with the output in the L2, measured twice as slow: the rows then
// come in pieces of 512 bytes.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/cpu/simd.hpp"

namespace clt {

using cpu::lanes;
using cpu::row_of;

namespace {

// Where thread `part` starts: columns before it hold part / parts of the work. A target layer's
// columns cost as much as it has sources. A multiple of a register, save L * d itself.
Index column_at_share(Index layers, Index d, Index part, Index parts) {
    if (part == parts) return layers * d;
    Index cost = d * layers * (layers + 1) / 2 * part / parts;
    Index target = 0;
    while (cost >= (target + 1) * d) cost -= ++target * d;
    return (target * d + cost / (target + 1)) / lanes * lanes;
}

struct Entries {
    const Index* row_start;
    const std::int32_t* token;
    const float* value;
};

// out[token, 0 .. 16 N) += value * weight for entries [begin, end) of one row.
template <int N>
void add_block(const Entries& entries, Index begin, Index end, const float* weight, float* out,
               Index stride) {
    cpu::Vec w[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) w[n] = cpu::load(weight + n * lanes);
    for (Index i = begin; i < end; ++i) {
        const float value = entries.value[i];
        if (value == 0) continue;  // jumprelu keeps entries for their threshold alone
        float* to = out + entries.token[i] * stride;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
            cpu::store(to + n * lanes, cpu::load(to + n * lanes) + value * w[n]);
    }
}

void add_row(const Entries& entries, Index row, const float* weight, Index width, float* out,
             Index stride) {
    const Index begin = entries.row_start[row];
    const Index end = entries.row_start[row + 1];
    if (begin == end) return;
    const Index rest = cpu::for_blocks(width, [&]<int n>(std::integral_constant<int, n>, Index at) {
        add_block<n>(entries, begin, end, weight + at, out + at, stride);
    });
    if (rest == width) return;
    for (Index i = begin; i < end; ++i) {
        if (entries.value[i] == 0) continue;
        float* to = out + entries.token[i] * stride;
        for (Index j = rest; j < width; ++j) to[j] += entries.value[i] * weight[j];
    }
}

}  // namespace

void CpuBackend::decode(const ActiveSet& active, std::span<const Matrix<const float>> decoder,
                        Matrix<float> out) {
    const auto layers = static_cast<Index>(decoder.size());
    CLT_CHECK(layers > 0 && active.rows % layers == 0 && out.cols % layers == 0);
    CLT_CHECK(active.tokens == out.rows);
    const Index features = active.rows / layers;
    const Index d = out.cols / layers;
    for (Index layer = 0; layer < layers; ++layer) {
        const Matrix<const float>& weight = decoder[static_cast<std::size_t>(layer)];
        CLT_CHECK(weight.rows == features && weight.cols == (layers - layer) * d, "layer {}",
                  layer);
    }
    const Entries entries{raw(active.row_start.span()), raw(active.token.span()),
                          raw(active.value.span())};
#pragma omp parallel
    {
        const Index threads = omp_get_num_threads();
        const Index first = column_at_share(layers, d, omp_get_thread_num(), threads);
        const Index end = column_at_share(layers, d, omp_get_thread_num() + 1, threads);
        for (Index token = 0; token < out.rows; ++token)
            std::fill_n(row_of(out, token) + first, end - first, 0.0F);
        for (Index layer = 0; layer < layers && layer * d < end; ++layer) {
            const Matrix<const float>& weight = decoder[static_cast<std::size_t>(layer)];
            const Index begin = std::max(first, layer * d);
            for (Index row = 0; row < features; ++row)
                add_row(entries, layer * features + row, row_of(weight, row) + begin - layer * d,
                        end - begin, raw(out) + begin, out.stride);
        }
    }
}

}  // namespace clt
