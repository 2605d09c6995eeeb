// What a training step costs on a grid: memory by purpose, bytes sent, and the least time its
// products and its memory traffic can take. A model of model/step.cpp as it is, kept beside it;
// `clt plan`, `clt bench step` and the check before a run share it. Letters as in model/step.hpp;
// R data replicas, P feature shards.
#pragma once

#include <string>
#include <vector>

#include "clt/comm/communicator.hpp"
#include "clt/model/config.hpp"
#include "clt/model/shape.hpp"

namespace clt {

struct CostQuery {
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
};

/// Rates of a host, shared by its ranks. Defaults: the development machine's 2 cores, measured:
/// oneDNN float32 product 220 GFLOP/s, memory triad 35 GB/s.
struct Machine {
    double gflops = 220;
    double gbytes_per_s = 35;
    Index ranks_per_host = 1;
};

struct MemoryUse {
    std::string purpose;
    Index bytes;
    std::string smaller;  // what makes it smaller
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
};

/// Of the rank with the most features and tokens. relu and jumprelu: the time of the dense path,
/// on which a young model runs, and the memory of whichever path needs more.
struct StepCost {
    Index parameters = 0;  // over all ranks
    std::vector<MemoryUse> memory;
    std::vector<Traffic> communication;
    std::vector<StageFloor> stages;

    Index memory_bytes() const;
    Index communication_bytes() const;
};
StepCost step_cost(const CostQuery& query);

/// The least seconds of a stage, or of a step: the stages one after the other.
double floor_s(const StageFloor& stage, const Machine& machine);
double floor_s(const StepCost& cost, const Machine& machine);

/// "940 MB a rank: optimiser moments 453 MB, parameters 227 MB, ...", largest first, without
/// those under a hundredth.
std::string memory_summary(const StepCost& cost);

/// Throws UserError, naming the largest purposes and what makes them smaller, when a rank's memory
/// is over what a host with available_bytes has for each of its ranks. Not collective.
void check_memory(const StepCost& cost, Index available_bytes, Index ranks_per_host);
/// The same for the host this runs on. Collective over world: every rank throws or none.
void check_memory(const StepCost& cost, const Communicator& world);

}  // namespace clt
