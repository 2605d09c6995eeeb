// The language model's kernels.
#include "backend/cuda/transformer.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "backend/cuda/cuda_backend.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

using cuda::device_matrix;

void CudaBackend::embed(Span<const std::int32_t> ids, std::span<const Index> starts,
                        Matrix<const float> token_rows, Matrix<const float> position_rows,
                        Matrix<float> x) {
    if (starts.empty() || starts.back() == 0) return;
    CLT_CHECK(starts.front() == 0 && starts.back() <= x.rows && starts.back() <= ids.size());
    CLT_CHECK(token_rows.cols == x.cols && position_rows.cols == x.cols);
    for (std::size_t s = 0; s + 1 < starts.size(); ++s)
        CLT_CHECK(starts[s + 1] - starts[s] <= position_rows.rows);
    auto* const on_device = scratch<Index>(static_cast<Index>(starts.size()));
    upload_bytes(starts.data(), on_device, starts.size_bytes());
    cuda::DeviceMatrix<float> out = device_matrix(x);
    out.rows = starts.back();
    cuda::embed(raw(ids), on_device, static_cast<Index>(starts.size()) - 1,
                device_matrix(token_rows), device_matrix(position_rows), out, stream());
}

void CudaBackend::layer_norm(Matrix<const float> x, Span<const float> gain, Span<const float> bias,
                             float epsilon, Matrix<float> y) {
    CLT_CHECK(y.rows == x.rows && y.cols == x.cols && gain.size() == x.cols &&
              bias.size() == x.cols);
    cuda::layer_norm(device_matrix(x), raw(gain), raw(bias), epsilon, device_matrix(y), stream());
}

void CudaBackend::add_bias(Span<const float> bias, Matrix<float> m) {
    CLT_CHECK(bias.size() == m.cols);
    cuda::add_bias(raw(bias), device_matrix(m), stream());
}

void CudaBackend::bias_activation(Span<const float> bias, MlpActivation activation,
                                  Matrix<float> m) {
    CLT_CHECK(bias.size() == m.cols);
    cuda::bias_activation(raw(bias), activation, device_matrix(m), stream());
}

void CudaBackend::add(Matrix<const float> from, Matrix<float> to) {
    CLT_CHECK(from.rows == to.rows && from.cols == to.cols);
    cuda::add(device_matrix(from), device_matrix(to), stream());
}

void CudaBackend::copy_matrix(Matrix<const float> from, Matrix<float> to) {
    CLT_CHECK(from.rows == to.rows && from.cols == to.cols);
    cuda::copy_matrix(device_matrix(from), device_matrix(to), stream());
}

void CudaBackend::attention(Matrix<const float> qkv, std::span<const Index> starts, Index heads,
                            Matrix<float> out) {
    const Index d = out.cols;
    CLT_CHECK(heads > 0 && d % heads == 0 && qkv.cols == 3 * d && qkv.rows == out.rows);
    std::vector<cuda::QueryBlock> blocks;
    for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
        const Index length = starts[s + 1] - starts[s];
        for (Index first = 0; first < length; first += cuda::query_block)
            blocks.push_back({starts[s], first, std::min(cuda::query_block, length - first)});
    }
    // Late queries see the most keys: those blocks begin first, so that none is left alone at the
    // end.
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    const auto n = static_cast<Index>(blocks.size());
    if (n == 0) return;
    auto* const on_device = scratch<cuda::QueryBlock>(n);
    upload_bytes(blocks.data(), on_device, blocks.size() * sizeof(cuda::QueryBlock));
    cuda::attention(device_matrix(qkv), on_device, n, heads, device_matrix(out), stream());
}

void CudaBackend::predict(Matrix<const float> logits, Span<const std::int32_t> targets,
                          Span<float> logsumexp, Span<float> loss, Span<std::int32_t> argmax) {
    CLT_CHECK(logits.cols > 0 && logits.cols <= std::numeric_limits<std::int32_t>::max() &&
              targets.size() == logits.rows);
    CLT_CHECK(logsumexp.size() == logits.rows && loss.size() == logits.rows &&
              argmax.size() == logits.rows);
    cuda::predict(device_matrix(logits), raw(targets), raw(logsumexp), raw(loss), raw(argmax),
                  stream());
}

}  // namespace clt
