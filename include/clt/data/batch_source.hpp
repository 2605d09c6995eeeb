// Where a step's tokens come from. A source yields batches of B tokens over all replicas; the order
// depends on the seed and the data, never on the grid.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "clt/backend/host_batch.hpp"
#include "clt/base/types.hpp"

namespace clt {

class BatchSource {
  public:
    virtual ~BatchSource() = default;  // collective over the grid

    virtual Index layers() const = 0;
    virtual Index d_model() const = 0;
    /// Tokens of one epoch.
    virtual Index tokens() const = 0;

    /// The next batch, valid until the next call. A training source never ends (epochs reshuffle
    /// and follow each other without a gap); an evaluation source makes one pass with a smaller
    /// last batch, then returns tokens == 0 until a seek. The first call starts background reads.
    /// Collective over the grid. Throws UserError on a NaN or infinity, naming chunk, layer and
    /// row.
    virtual HostBatch next() = 0;

    /// Where the batch after the last one returned starts, as a short JSON text (not ahead by what
    /// was prefetched).
    virtual std::string cursor() const = 0;
    /// Continues from cursor(); the batches that follow are bit for bit those of the run that wrote
    /// it. Any grid. Throws UserError when the data set or the seed is another. Collective.
    virtual void seek(const std::string& cursor) = 0;
    /// The rows of an epoch come in another order from here on: that of this number; 0 is the order
    /// of the beginning. A cursor remembers it. Collective.
    virtual void reorder(Index order) = 0;

    /// [L, d]: factor that maps an error in normalised targets to original units (std, 1/sqrt(d),
    /// or 1).
    virtual const std::vector<float>& error_scale() const = 0;
};

}  // namespace clt
