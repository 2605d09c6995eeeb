// `clt plan`: what a train job will cost, before anything is allocated. The figures come from the
// cost model (model/cost.hpp); nothing is measured.
#pragma once

#include <string>

#include "clt/comm/communicator.hpp"
#include "clt/model/cost.hpp"
#include "clt/train/config.hpp"

namespace clt {

struct PlanOptions {
    Index ranks = 0;           // 0: what [grid] says, or 1
    Index ranks_per_host = 0;  // 0: all on one host
    Index layers = 0;          // L and d when there is no data set yet; both or none
    Index d_model = 0;
    double gflops = 0;  // of a host, with cuda of a GPU; 0: this machine's, an H100's
    double gbytes_per_s = 0;
    Index host_bytes = 0;    // memory of a host; 0: what this one has available
    Index device_bytes = 0;  // memory of a GPU; 0: an H100's
};

struct Plan {
    CostQuery query;
    StepCost cost;
    Machine machine;
    Index ranks_per_host = 1;
    Index host_bytes = 0;
    Index device_bytes = 0;
    Index steps = 0;
    Index data_tokens = 0;  // of the data set; 0: unknown
};

/// Reads the data set's metadata unless L and d are given. Collective over world. Throws UserError:
/// no data set, a grid that does not have this many ranks.
Plan make_plan(const TrainJob& job, const PlanOptions& options, const Communicator& world);

/// Throws UserError when a rank's memory does not fit.
void check_memory(const Plan& plan);

/// Tables of memory, communication and floor, at most 100 columns.
std::string to_text(const Plan& plan);

}  // namespace clt
