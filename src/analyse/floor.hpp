// What a training step must cost on this machine, from rates measured here.
#pragma once

#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/model/shape.hpp"

namespace clt {

/// Of one rank while all ranks work at once, the slowest rank's.
struct MachineRates {
    double flop_per_s = 0;   // dense float32 product
    double bytes_per_s = 0;  // memory traffic, read plus written
};

/// Times the backend's product and its streaming kernels, best of a few. Uses `tokens` tokens and
/// up to 2,048 features of width d_model, and 128 MB for the bandwidth. Collective.
MachineRates measure_rates(Backend& backend, Index tokens, Index d_model, const Communicator& all);

/// Seconds of the slowest rank, by part.
struct StepFloor {
    double encode_s = 0;  // 2 B L F d FLOP
    /// The gather: each active (token, feature) adds its decoder row, 2 (L - l) d FLOP; a row is
    /// read at least once when it is active at all.
    double decode_s = 0;
    /// Gradients of activations and rows and the optimiser: value and two moments are read and
    /// written, 24 bytes an element, of every encoder row and of the decoder rows that are active.
    double rows_s = 0;
    double batch_s = 0;  // inputs and targets read, residuals written and read
    double total_s() const { return encode_s + decode_s + rows_s + batch_s; }
};

/// l0 [L]: active features a token.
StepFloor step_floor(const Shape& shape, Index tokens, const std::vector<double>& l0,
                     const ProcessGrid& grid, const MachineRates& rates);

}  // namespace clt
