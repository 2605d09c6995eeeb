// Sizes of the CUDA backend, for plans made where there is no CUDA.
#pragma once

#include <algorithm>

#include "clt/base/types.hpp"

namespace clt {

inline constexpr Index h100_l2_bytes = Index{50} << 20;
/// Of a GPU for one NCCL communicator: 0.5 to 0.7 GB are reported for GPUs behind NVLink.
inline constexpr Index nccl_communicator_bytes = 700'000'000;

/// Features of a tile [T, B] of floats. It is written by the product and read twice from L2, which
/// also holds x and what the product streams of the weights: a third of it, in whole thread blocks
/// of the product.
constexpr Index cuda_encode_tile(Index tokens, Index l2_bytes) {
    constexpr Index multiple = 128;
    constexpr Index largest = 8192;
    const Index fits = l2_bytes / 3 / (4 * std::max<Index>(tokens, 1));
    return std::clamp(fits / multiple * multiple, multiple, largest);
}

}  // namespace clt
