// Cuts the stream of tokens into batches and brings each rank its slice: rows lie where they were
// read, so they are exchanged, then converted and normalised.
#pragma once

#include <cstdint>
#include <vector>

#include "clt/backend/host_batch.hpp"
#include "clt/comm/process_grid.hpp"
#include "data/row_converter.hpp"
#include "data/sampler.hpp"
#include "data/window_reader.hpp"

namespace clt {

/// A batch in the making; view points into the arrays, which are made with room for it: the
/// backend may have pinned them.
struct MadeBatch {
    HostBatch view;
    StreamPosition end;  // where the next batch starts
    std::vector<float> inputs, targets;
};

class BatchMaker {
  public:
    /// References must outlive it, save the grid's.
    BatchMaker(const ActivationDataset& dataset, const std::vector<Unit>& units,
               const Sampler& sampler, StreamPosition start, Index batch_tokens,
               const RowConverter& converter, const ProcessGrid& grid, WindowReader& reader,
               const Communicator& communicator);

    /// The next batch; tokens == 0 after the end of a single pass. Collective. Throws UserError on
    /// a value that is not finite.
    void make(MadeBatch& batch);

  private:
    /// Consecutive tokens of a batch that come from one take.
    struct Piece {
        std::size_t unit;
        Index count;
        bool ends_take;
    };
    struct Token {
        std::uint32_t row;  // in the unit
        std::int32_t source;
    };

    void choose_tokens(Index n);
    void exchange(MadeBatch& batch, const std::vector<Shard>& slices);
    void convert(MadeBatch& batch, Index token, const std::byte* row, std::string& trouble) const;

    const ActivationDataset* dataset_;
    const std::vector<Unit>* units_;
    const Sampler* sampler_;
    const RowConverter* converter_;
    WindowReader* reader_;
    const Communicator* communicator_;
    Index batch_tokens_;
    std::vector<Shard> full_slices_, last_slices_;  // of a whole batch and of a pass's last

    TakeStream stream_;
    StreamPosition position_;
    std::vector<std::uint32_t> order_;  // the current take's rows
    Index used_ = 0;                    // of the current take
    std::vector<Piece> pieces_;
    std::vector<Token> tokens_;
    std::vector<std::byte> send_, receive_;
};

}  // namespace clt
