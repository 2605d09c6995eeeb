// Sparse decode with plain pointers (see decode.cu).
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/runtime.hpp"

namespace clt::cuda {

/// An active set; fewer than 2^31 entries, fewer than 2^31 (layer, token) pairs.
struct EntriesByRow {
    const Index* row_start = nullptr;     // [layers * features + 1]
    const std::int32_t* token = nullptr;  // [entries]
    const float* value = nullptr;         // [entries]
    Index layers = 0;
    Index features = 0;
    Index tokens = 0;
    Index entries = 0;
};

/// An entry as its token sees it.
struct alignas(8) FeatureValue {
    std::int32_t feature;  // within its layer
    float value;
};

/// The same entries ascending by (layer, token, feature).
struct EntriesByToken {
    const Index* start = nullptr;         // [layers * tokens + 1], of (layer, token)
    const FeatureValue* entry = nullptr;  // [entries]
};

std::size_t by_token_bytes(const EntriesByRow& set);
/// The result lies in scratch, which has by_token_bytes() and is 16-byte aligned.
EntriesByToken order_by_token(const EntriesByRow& set, void* scratch, StreamHandle stream);

/// out[tokens, width] += (`writes`: =) sum over the source layer's entries of value * its row.
struct SourceDecode {
    const Index* start = nullptr;  // [tokens + 1], of this layer
    const FeatureValue* entry = nullptr;
    const float* decoder = nullptr;  // [features, width]
    Index decoder_stride = 0;
    float* out = nullptr;  // [tokens, width], from the layer's own target on
    Index out_stride = 0;
    Index tokens = 0;
    Index width = 0;
    bool writes = false;
};
/// wide_panels: whether the rows' slice of 256 columns stays in the L2.
void decode_source(const SourceDecode& source, bool wide_panels, StreamHandle stream);

}  // namespace clt::cuda
