// Sparse decode. Not a gather by token: that reads k decoder rows for each of B tokens. Columns are
// the outer loop and rows the inner one, so each decoder element is read from memory once, stays in
// a register for all tokens of its feature, and lands in a panel of the output that stays in cache.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/cpu/simd.hpp"

namespace clt {

using cpu::lanes;
using cpu::row_of;

namespace {

// Columns of a panel: 8 registers of 16; at B = 1024 the panel takes 512 KB, half an L2.
constexpr Index panel_columns = 128;

// Columns [first, first + width) of the output, all of one target layer.
struct Panel {
    Index target;
    Index first;
    Index width;
};

// The last targets first: they have the most sources, and threads take panels in turn.
std::vector<Panel> panels_of(Index layers, Index d) {
    std::vector<Panel> panels;
    for (Index target = layers - 1; target >= 0; --target)
        for (Index at = 0; at < d; at += panel_columns)
            panels.push_back({target, target * d + at, std::min(panel_columns, d - at)});
    return panels;
}

struct Rows {
    const Index* row_start;  // of the layer's first row
    const std::int32_t* token;
    const float* value;
    const float* weight;  // of the first row, at the panel's column
    Index stride;
    Index count;
};

// sum[token, 0 .. 16 N) += value * weight; rows of `sum` are panel_columns apart.
template <int N>
void add_rows(const Rows& rows, float* panel) {
    for (Index row = 0; row < rows.count; ++row) {
        const Index end = rows.row_start[row + 1];
        Index i = rows.row_start[row];
        if (i == end) continue;
        const float* weight = rows.weight + row * rows.stride;
        cpu::Vec w[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) w[n] = cpu::load(weight + n * lanes);
        for (; i < end; ++i) {
            const float value = rows.value[i];
            if (value == 0) continue;  // jumprelu keeps entries for their threshold alone
            float* out = panel + rows.token[i] * panel_columns;
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n)
                cpu::store(out + n * lanes, cpu::load(out + n * lanes) + value * w[n]);
        }
    }
}

void add_rows_tail(const Rows& rows, Index width, float* panel) {
    for (Index row = 0; row < rows.count; ++row) {
        const float* weight = rows.weight + row * rows.stride;
        for (Index i = rows.row_start[row]; i < rows.row_start[row + 1]; ++i) {
            if (rows.value[i] == 0) continue;
            float* out = panel + rows.token[i] * panel_columns;
            for (Index j = 0; j < width; ++j) out[j] += rows.value[i] * weight[j];
        }
    }
}

void add_panel(Rows rows, Index width, float* panel) {
    const auto advance = [&](Index columns) {
        rows.weight += columns;
        panel += columns;
        width -= columns;
    };
    if (width == 8 * lanes) return add_rows<8>(rows, panel);
    if (width >= 4 * lanes) add_rows<4>(rows, panel), advance(4 * lanes);
    if (width >= 2 * lanes) add_rows<2>(rows, panel), advance(2 * lanes);
    if (width >= lanes) add_rows<1>(rows, panel), advance(lanes);
    if (width > 0) add_rows_tail(rows, width, panel);
}

}  // namespace

void CpuBackend::decode(const ActiveSet& active, std::span<const Matrix<const float>> decoder,
                        Matrix<float> out) {
    const auto layers = static_cast<Index>(decoder.size());
    CLT_CHECK(layers > 0 && active.rows % layers == 0 && out.cols % layers == 0);
    CLT_CHECK(active.tokens == out.rows);
    const Index features = active.rows / layers;
    const Index d = out.cols / layers;
    const Index* row_start = raw(active.row_start.span());
    const std::vector<Panel> panels = panels_of(layers, d);
    const Index panel_size = out.rows * panel_columns;
    // Panels are packed: rows of `out` are a multiple of 4 KiB apart in the usual models, and such
    // columns would share a few cache sets.
    float* scratch = float_scratch(omp_get_max_threads() * panel_size);
#pragma omp parallel
    {
        float* sum = scratch + omp_get_thread_num() * panel_size;
#pragma omp for schedule(dynamic, 1)
        for (std::size_t p = 0; p < panels.size(); ++p) {
            const Panel& panel = panels[p];
            std::fill_n(sum, panel_size, 0.0F);
            for (Index layer = 0; layer <= panel.target; ++layer) {
                const Matrix<const float>& weight = decoder[static_cast<std::size_t>(layer)];
                const Rows rows{row_start + layer * features,
                                raw(active.token.span()),
                                raw(active.value.span()),
                                raw(weight) + panel.first - layer * d,
                                weight.stride,
                                features};
                add_panel(rows, panel.width, sum);
            }
            for (Index token = 0; token < out.rows; ++token)
                std::copy_n(sum + token * panel_columns, panel.width,
                            row_of(out, token) + panel.first);
        }
    }
}

}  // namespace clt
