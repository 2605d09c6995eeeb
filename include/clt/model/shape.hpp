// The sizes of a cross-layer transcoder: L layers of width d, F features each; layer s's features
// write to every layer t >= s.
#pragma once

#include "clt/base/types.hpp"

namespace clt {

struct Shape {
    Index layers = 0;    // L
    Index d_model = 0;   // d
    Index features = 0;  // F, a layer, over all shards

    /// Width of a decoder row of layer s: its L - s target vectors one after the other.
    constexpr Index decoder_width(Index layer) const { return (layers - layer) * d_model; }
    /// Parameters without thresholds: L F (d + 1) + F d L (L + 1) / 2 + L d.
    constexpr Index parameters() const {
        return layers * features * (d_model + 1) + features * d_model * layers * (layers + 1) / 2 +
               layers * d_model;
    }
    constexpr bool operator==(const Shape&) const = default;
};

}  // namespace clt
