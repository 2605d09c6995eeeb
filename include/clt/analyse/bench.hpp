// `clt bench step`: the training step on a synthetic batch, timed by stage, next to its floor: one
// encoder product at the machine's matrix rate plus the bytes that the gathers and the optimiser
// must move at its memory bandwidth, both rates measured here, on the same ranks.
#pragma once

#include <string>

#include "clt/backend/backend.hpp"
#include "clt/base/fields.hpp"
#include "clt/comm/config.hpp"

namespace clt {

struct BenchOptions {
    Index layers = 6;
    Index d_model = 512;
    Index features = 4096;
    double k = 64;
    Index batch = 1024;
    Index steps = 5;
    Index warmup = 2;
    std::string activation = "batchtopk";
    GridConfig grid;

    template <class V>
    void fields(V& v) {
        v("layers", layers, rule::count(), "Layers of the model (L)");
        v("d_model", d_model, rule::count(), "Width of a layer's activations (d)");
        v("features", features, rule::count(), "Features a layer (F)");
        v("k", k, rule::positive(), "batchtopk and topk: active features a token over all layers");
        v("batch", batch, rule::count(), "Tokens of a step over all replicas (B)");
        v("steps", steps, rule::count(), "Timed steps");
        v("warmup", warmup, rule::count(0), "Steps before the clock starts");
        v("activation", activation, rule::one_of({"batchtopk", "topk", "jumprelu", "relu"}),
          "Activation function");
    }
};

/// One JSON object, on every rank: step_s (median; a step takes as long as its slowest rank),
/// tokens_per_s, floor_s, floor (seconds by stage, model/cost.hpp), ratio_to_floor, stages (mean
/// seconds by stage), peak_rss_bytes (sum over ranks) and peak_rss_bytes_max, on GPUs
/// peak_device_bytes_max (of what was allocated), parameters, ranks, threads (of a rank), and the
/// rates measured on a rank. Collective over `world`. Throws UserError when memory or the grid do
/// not fit.
std::string bench_step(const BenchOptions& options, Backend& backend, const Communicator& world);

/// The save of a checkpoint of this model next to a file of as many bytes written by one process in
/// sequence, with fsync, in the same folder, in turns. One JSON object, on every rank (medians):
/// bytes, take_s (the copy to host memory, for which training stops), write_s (reading back
/// included), plain_s, ratio_to_plain (plain_s / write_s). Collective over `world`. Throws
/// UserError when the folder cannot be written.
std::string bench_checkpoint(const BenchOptions& options, const std::string& folder,
                             Backend& backend, const Communicator& world);

}  // namespace clt
