// Sparse decode.
#include <limits>

#include "backend/cuda/cuda_backend.hpp"
#include "backend/cuda/decode.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

void CudaBackend::decode(const ActiveSet& active, std::span<const Matrix<const float>> decoder,
                         Matrix<float> out) {
    const auto layers = static_cast<Index>(decoder.size());
    CLT_CHECK(layers > 0 && active.rows % layers == 0 && out.cols % layers == 0);
    CLT_CHECK(active.tokens == out.rows);
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    CLT_CHECK(active.entries < most && layers * active.tokens < most, "{} entries of {} tokens",
              active.entries, active.tokens);
    const Index features = active.rows / layers;
    const Index d = out.cols / layers;
    const cuda::EntriesByRow by_row{raw(active.row_start.span()),
                                    raw(active.token.span()),
                                    raw(active.value.span()),
                                    layers,
                                    features,
                                    active.tokens,
                                    active.entries};
    const cuda::EntriesByToken by_token = cuda::order_by_token(
        by_row, scratch<std::byte>(static_cast<Index>(cuda::by_token_bytes(by_row))), stream());
    // The L2's halves each keep what their multiprocessors read, and the output passes through.
    const bool wide_panels =
        features * 256 * static_cast<Index>(sizeof(float)) <= device_.limits().l2_bytes / 4;
    for (Index layer = 0; layer < layers; ++layer) {
        const Matrix<const float>& weight = decoder[static_cast<std::size_t>(layer)];
        const Index width = (layers - layer) * d;
        CLT_CHECK(weight.rows == features && weight.cols == width, "layer {}", layer);
        cuda::SourceDecode source;
        source.start = by_token.start + layer * active.tokens;
        source.entry = by_token.entry;
        source.decoder = raw(weight);
        source.decoder_stride = weight.stride;
        source.out = raw(out) + layer * d;
        source.out_stride = out.stride;
        source.tokens = active.tokens;
        source.width = width;
        source.writes = layer == 0;  // every column has source 0
        cuda::decode_source(source, wide_panels, stream());
    }
}

}  // namespace clt
