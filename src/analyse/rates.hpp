// The rates a step's floor (model/cost.hpp) is computed with, measured on the ranks that run it.
#pragma once

#include "clt/backend/backend.hpp"
#include "clt/model/cost.hpp"

namespace clt {

/// Times the backend's encoder product, near enough to a cube to run at the full rate, and its
/// streaming kernels, best of a few, while all ranks work at once: the slowest rank's rates, as a
/// machine of one rank. The extents grow with `tokens` and d_model, up to 8,192, and 1 GB for the
/// bandwidth. Collective.
Machine measure_rates(Backend& backend, Index tokens, Index d_model, const Communicator& all);

}  // namespace clt
