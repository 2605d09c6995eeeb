// The residual, its loss and its gradient, and the sums that evaluation keeps of them.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"

namespace clt {

using cpu::row_of;

namespace {

// Tokens whose squared errors are summed before the blocks are.
constexpr Index block_tokens = 16;
constexpr Index block_columns = 64;

}  // namespace

void CpuBackend::residual(Matrix<float> partial, Matrix<const float> target, Span<const float> bias,
                          Span<const float> scale, Index batch_tokens, Index layers,
                          Matrix<float> gradient, Span<double> squared_error) {
    const Index cols = partial.cols;
    CLT_CHECK(bias.size() == cols && scale.size() == cols && cols % layers == 0);
    CLT_CHECK(target.rows == partial.rows && target.cols == cols);
    CLT_CHECK(gradient.rows == partial.rows && gradient.cols == cols);
    CLT_CHECK(squared_error.size() == layers);
    const Index d = cols / layers;
    const Index blocks = (partial.rows + block_tokens - 1) / block_tokens;
    const float* b = raw(bias);
    const float* s = raw(scale);
    const auto factor =
        static_cast<float>(2.0 / (static_cast<double>(batch_tokens) * static_cast<double>(d)));
    double* sums = double_scratch(blocks * layers);
#pragma omp parallel for schedule(static)
    for (Index block = 0; block < blocks; ++block) {
        double* sum = sums + block * layers;
        std::fill_n(sum, layers, 0.0);
        const Index end = std::min(partial.rows, (block + 1) * block_tokens);
        for (Index token = block * block_tokens; token < end; ++token)
            for (Index layer = 0; layer < layers; ++layer) {
                float* e = row_of(partial, token);
                const float* y = row_of(target, token);
                float* g = row_of(gradient, token);
                double squared = 0;
#pragma omp simd reduction(+ : squared)
                for (Index j = layer * d; j < (layer + 1) * d; ++j) {
                    const float error = e[j] + b[j] - y[j];
                    const float scaled = s[j] * error;
                    e[j] = error;
                    g[j] = factor * s[j] * scaled;
                    squared += static_cast<double>(scaled) * static_cast<double>(scaled);
                }
                sum[layer] += squared;
            }
    }
    std::fill_n(raw(squared_error), layers, 0.0);
    for (Index block = 0; block < blocks; ++block)
        for (Index layer = 0; layer < layers; ++layer)
            raw(squared_error)[layer] += sums[block * layers + layer];
}

void CpuBackend::accumulate(Matrix<const float> error, Matrix<const float> target,
                            ColumnSums& sums) {
    const Index cols = error.cols;
    CLT_CHECK(target.rows == error.rows && target.cols == cols);
    CLT_CHECK(sums.target.size() == cols && sums.target_squared.size() == cols);
    CLT_CHECK(sums.error.size() == cols && sums.error_squared.size() == cols);
    double* y1 = raw(sums.target.span());
    double* y2 = raw(sums.target_squared.span());
    double* e1 = raw(sums.error.span());
    double* e2 = raw(sums.error_squared.span());
#pragma omp parallel for schedule(static)
    for (Index first = 0; first < cols; first += block_columns) {
        const Index end = std::min(cols, first + block_columns);
        for (Index token = 0; token < error.rows; ++token) {
            const float* e = row_of(error, token);
            const float* y = row_of(target, token);
#pragma omp simd
            for (Index j = first; j < end; ++j) {
                const auto yj = static_cast<double>(y[j]);
                const auto ej = static_cast<double>(e[j]);
                y1[j] += yj;
                y2[j] += yj * yj;
                e1[j] += ej;
                e2[j] += ej * ej;
            }
        }
    }
}

}  // namespace clt
