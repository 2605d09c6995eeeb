// A rank's part of a step's tokens, on its way from a batch source to the step.
#pragma once

#include <span>

#include "clt/base/types.hpp"

namespace clt {

/// This rank's part of a batch, normalised, in host memory. B = tokens over all ranks;
/// slice = grid.token_slice(B); in rank order the slices tile the batch.
struct HostBatch {
    Index tokens = 0;                // B
    Shard slice;                     // this rank's tokens of [0, B)
    std::span<const float> inputs;   // [slice, L, d]
    std::span<const float> targets;  // [slice, L, d]
    double wait_s = 0;               // how long next() waited for data
};

}  // namespace clt
