// Activations made up for a benchmark: tokens mix a few directions that all layers share, so that
// features specialise and selection works as on real data; targets are a fixed linear map of the
// inputs. Values depend on the token's number alone, not on the grid.
#pragma once

#include <memory>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/backend/host_batch.hpp"
#include "clt/comm/process_grid.hpp"

namespace clt {

class SyntheticBatch {
  public:
    /// Batch number `number` of `tokens` tokens; this rank's slice of it.
    SyntheticBatch(Index number, Index tokens, Index layers, Index d_model,
                   const ProcessGrid& grid);
    HostBatch batch() const;
    /// Makes its uploads fast; the backend must outlive it.
    void pin(Backend& backend);

  private:
    Index tokens_;
    Shard slice_;
    std::vector<float> inputs_;                      // [slice, L, d]
    std::vector<float> targets_;                     // [slice, L, d]
    std::vector<std::shared_ptr<const void>> pins_;  // of both, so they die first
};

}  // namespace clt
