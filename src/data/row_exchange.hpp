// Moves the rows of a chunk from the ranks that made them to the ranks that write them, shuffled.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "clt/base/float16.hpp"
#include "clt/comm/communicator.hpp"

namespace clt {

/// Row i of the stored chunk is row [i] of the order in which tokens came. Depends on seed, chunk
/// and rows only. Source: Fisher-Yates, drawn from Philox.
std::vector<std::uint32_t> chunk_permutation(std::uint64_t seed, Index chunk, Index rows);

class RowExchange {
  public:
    /// counts: rows that each rank holds, in rank order. Stored rows come in blocks of block_rows
    /// (the last may have less); rank r gets the blocks shard_of(blocks, r, ranks).
    RowExchange(const std::vector<std::uint32_t>& permutation, std::span<const Index> counts,
                Index block_rows, const Communicator& communicator);

    Shard stored_rows() const { return stored_; }
    /// This rank's stored rows of one column block, [stored_rows, d] elements of `type`, until the
    /// next call. rows: this rank's rows; row i starts at rows + i * stride. Collective.
    const std::byte* exchange(const float* rows, Index stride, Index d_model, DType type);

  private:
    const Communicator* communicator_;
    Shard stored_;
    std::vector<std::uint32_t> send_order_;     // own rows by the place they go to
    std::vector<Index> send_rows_;              // by destination
    std::vector<std::uint32_t> receive_order_;  // place in the receive buffer of each stored row
    std::vector<Index> receive_rows_;           // by source
    std::vector<std::byte> send_, receive_, ordered_;
};

}  // namespace clt
