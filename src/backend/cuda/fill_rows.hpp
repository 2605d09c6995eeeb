// The bias of a product, written where the product is then added.
#pragma once

#include "backend/cuda/runtime.hpp"

namespace clt::cuda {

/// out[rows, cols] = value[rows], dense.
void fill_rows(const float* value, Index rows, Index cols, float* out, StreamHandle stream);

}  // namespace clt::cuda
