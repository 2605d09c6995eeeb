// The 2D grid of ranks: data replicas × feature shards. World rank = data index · features +
// feature index: the feature index varies fastest, so a shard group shares a node.
#pragma once

#include "clt/comm/communicator.hpp"
#include "clt/comm/config.hpp"

namespace clt {

class ProcessGrid {
  public:
    /// Splits `world` into data × feature ranks. data · feature must equal the world's size
    /// (UserError that names the [grid] keys otherwise: no rank is ever left idle). Collective over
    /// world.
    ProcessGrid(const Communicator& world, int data, int feature);

    /// The grid of a [grid] table; feature = 0 takes the ranks that data leaves.
    ProcessGrid(const Communicator& world, const GridConfig& config);

    int data_parts() const { return data_.size(); }
    int feature_parts() const { return feature_.size(); }
    int data_index() const { return data_.rank(); }
    int feature_index() const { return feature_.rank(); }

    const Communicator& all() const { return all_; }
    /// Ranks with the same features and other tokens.
    const Communicator& data() const { return data_; }
    /// Ranks with the same tokens and other features.
    const Communicator& feature() const { return feature_; }

    /// The features of each layer this rank owns.
    Shard feature_shard(Index features) const {
        return shard_of(features, feature_index(), feature_parts());
    }
    /// The tokens of a batch of n this rank's replica encodes.
    Shard replica_tokens(Index n) const { return shard_of(n, data_index(), data_parts()); }
    /// The tokens of a batch of n whose residual world rank r forms: a part of its replica's
    /// tokens. In rank order the slices tile [0, n).
    Shard token_slice(Index n, int world_rank) const {
        const Shard replica = shard_of(n, world_rank / feature_parts(), data_parts());
        const Shard part = shard_of(replica.size(), world_rank % feature_parts(), feature_parts());
        return {replica.begin + part.begin, replica.begin + part.end};
    }
    Shard token_slice(Index n) const { return token_slice(n, all_.rank()); }

  private:
    Communicator all_;
    Communicator data_;
    Communicator feature_;
};

}  // namespace clt
