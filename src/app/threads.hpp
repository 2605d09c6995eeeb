// How many threads a rank computes with.
#pragma once

#include "clt/comm/communicator.hpp"

namespace clt {

/// OMP_NUM_THREADS when it is set; else this rank's share of the cores it may run on: a core that
/// n ranks of this host may use counts 1/n, and the hardware threads of one core count once.
/// At least 1. Collective over world.
int threads_per_rank(const Communicator& world);

}  // namespace clt
