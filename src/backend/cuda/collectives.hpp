// Collectives on device memory: NCCL where every rank has a device of its own, else through host
// memory and MPI.
#pragma once

#include <memory>

#include "backend/cuda/device.hpp"
#include "clt/comm/collectives.hpp"

namespace clt::cuda {

// The device must outlive them. Collective over `communicator`.
std::unique_ptr<Collectives> make_nccl_collectives(const Communicator& communicator,
                                                   Device& device);
std::unique_ptr<Collectives> make_staged_collectives(const Communicator& communicator,
                                                     Device& device);

}  // namespace clt::cuda
