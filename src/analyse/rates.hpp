// The rates a step's floor (model/cost.hpp) is computed with, measured on the ranks that run it.
#pragma once

#include "clt/backend/backend.hpp"
#include "clt/model/cost.hpp"

namespace clt {

/// Times the backend's product and its streaming kernels, best of a few, while all
/// ranks work at once: the slowest rank's rates, as a machine of one rank a host. Uses `tokens`
/// tokens and up to 2,048 features of width d_model, and 128 MB for the bandwidth. Collective.
Machine measure_rates(Backend& backend, Index tokens, Index d_model, const Communicator& all);

}  // namespace clt
