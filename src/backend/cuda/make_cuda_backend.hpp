// The one name of the CUDA backend that is known outside its folder.
#pragma once

#include <memory>
#include <string>

#include "clt/backend/backend.hpp"

namespace clt {

/// Ranks of a host take its devices in turn. precision: as make_backend(). Throws UserError when
/// there is no device. Collective over `world`.
std::unique_ptr<Backend> make_cuda_backend(const Communicator& world, const std::string& precision);

}  // namespace clt
