// What a training step costs on a grid: memory by purpose, bytes sent, and the least time its
// products and its memory traffic can take. A model of model/step.cpp as it is, kept beside it;
// `clt plan`, `clt bench step` and the check before a run share it. Letters as in model/step.hpp;
// R data replicas, P feature shards.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/comm/communicator.hpp"
#include "clt/model/config.hpp"
#include "clt/model/shape.hpp"

namespace clt {

struct CostQuery {
    bool cuda = false;             // the CUDA backend's step: its memory is the GPU's
    bool rounded = false;          // the encoder's product reads bfloat16 copies
    Index communicator_bytes = 0;  // of a GPU, for one communicator of several ranks
    Shape shape;
    ModelConfig model;
    LossConfig loss;
    double gradient_clip = 0;
    Index batch_tokens = 0;   // B, over all replicas
    Index data_parts = 1;     // R
    Index feature_parts = 1;  // P
    Index tile = 0;           // T: Backend::encode_tile for a replica's tokens
    /// The batch source's share: rows held in memory over all ranks, bytes of a stored number, and
    /// batches prepared ahead.
    Index window_tokens = 0;
    Index element_bytes = 4;
    Index prefetch = 0;
    bool keeps_checkpoint_copy = false;  // a checkpoint is written from a copy in host memory
};

/// Rates of a host, or of one of its GPUs, shared by the ranks on it. Defaults: the development
/// machine's 2 cores, measured: oneDNN float32 product 220 GFLOP/s, memory triad 35 GB/s.
struct Machine {
    double gflops = 220;  // of the encoder's product, in its precision
    double gbytes_per_s = 35;
    Index ranks = 1;            // that share the rates
    double float32_gflops = 0;  // of all other arithmetic; 0: the same
};
/// An H100 SXM with one rank and this precision of the encoder's product. bfloat16 and memory as
/// measured with large arrays: 798 TFLOP/s, a copy of 3.0 TB/s counting bytes read and written;
/// tf32 and float32 four fifths of the datasheet's 495 and 67 TFLOP/s.
constexpr Machine h100(std::string_view precision = "auto") {
    constexpr double tf32 = 396e3;
    constexpr double float32 = 54e3;
    if (precision == "float32") return {float32, 3000, 1, float32};
    if (precision == "tf32") return {tf32, 3000, 1, tf32};  // so are all products then
    return {798e3, 3000, 1, float32};
}
inline constexpr Index h100_bytes = 80'000'000'000;

struct MemoryUse {
    std::string purpose;
    Index bytes;
    std::string smaller;     // what makes it smaller
    bool on_device = false;  // in a GPU's own memory
};
struct Traffic {
    std::string what;
    std::string collective;
    Index bytes;  // sent by a rank in a step
};
struct StageFloor {
    std::string stage;  // as Step::take_stage_seconds() calls it
    double flop;        // of a rank
    double bytes;       // read from or written to memory by a rank; what fits a cache counts once
    double encoder_flop = 0;  // of the flop, those of encoder products
};

/// One kernel of the CUDA backend in a step.
struct KernelCost {
    std::string stage;
    std::string kernel;
    Index launches;
    double flop;           // of matrix products
    double bytes;          // read from or written to device memory
    double cache_bytes;    // gathered from or exchanged through the L2
    bool float32 = false;  // the product is in float32, not in the encoder's precision
};

/// Of the rank with the most features and tokens. relu and jumprelu: the time of the dense path,
/// on which a young model runs, and the memory of whichever path needs more.
struct StepCost {
    Index parameters = 0;        // over all ranks
    Index checkpoint_bytes = 0;  // of the file
    std::vector<MemoryUse> memory;
    std::vector<Traffic> communication;
    std::vector<StageFloor> stages;
    std::vector<KernelCost> kernels;  // cuda

    Index memory_bytes(bool on_device = false) const;
    Index communication_bytes() const;
};
/// Throws UserError when sizes or k are beyond what a step can count.
StepCost step_cost(const CostQuery& query);

/// Sets what depends on the backend: cuda, rounded, communicator_bytes and tile. The rest must be
/// there.
void describe_backend(const Backend& backend, CostQuery& query);

/// The least seconds of a stage, or of a step: the stages one after the other.
double floor_s(const StageFloor& stage, const Machine& machine);
double floor_s(const StepCost& cost, const Machine& machine);
/// What a kernel should take: the slowest of its product, its memory and its L2 traffic at the
/// shares of the peaks that such kernels reach, and its launches. An estimate, see cuda_cost.cpp.
double expected_s(const KernelCost& kernel, const Machine& machine);

/// "940 MB a rank: optimiser moments 453 MB, parameters 227 MB, ...", largest first, without
/// those under a hundredth; of the GPU, then of the host, where there are both.
std::string memory_summary(const StepCost& cost);

/// Throws UserError, naming the largest purposes and what makes them smaller, when a rank's memory
/// is over what a host with available_bytes has for each of its ranks, or (on_device) a GPU. Not
/// collective.
void check_memory(const StepCost& cost, Index available_bytes, Index ranks, bool on_device = false);
/// The same for the host and the GPUs this runs on. Collective over world: every rank throws or
/// none.
void check_memory(const StepCost& cost, const Backend& backend, const Communicator& world);

}  // namespace clt
