// An activation data set on disk: chunks of rows (tokens) for every layer, in the layout of
// crosslayer-coding (reference-spec 1). Read by row range; element type native.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clt/base/float16.hpp"
#include "clt/comm/communicator.hpp"

namespace clt {

struct ChunkInfo {
    Index id = 0;
    Index rows = 0;
    std::string path;
};

/// mean and std of one layer's columns, as norm_stats.json holds them.
struct ColumnStats {
    std::vector<float> mean, std;  // [d]
};
struct LayerStats {
    ColumnStats inputs, targets;
};

class ActivationDataset {
  public:
    /// Reads metadata.json, index.bin (3-field and legacy 2-field, rule of spec 1.3) and
    /// norm_stats.json on rank 0 and broadcasts. Throws UserError naming the file and what was
    /// expected. Collective.
    ActivationDataset(const std::string& path, const Communicator& communicator);

    const std::string& path() const { return path_; }
    Index layers() const { return layers_; }
    Index d_model() const { return d_model_; }
    Index tokens() const { return tokens_; }
    DType dtype() const { return dtype_; }
    /// Numbers of the layer_<id> groups, ascending; they need not be 0..L-1.
    const std::vector<Index>& layer_ids() const { return layer_ids_; }
    const std::vector<ChunkInfo>& chunks() const { return chunks_; }
    const std::string& metadata() const { return metadata_; }  // JSON text
    /// FNV-1a of metadata.json and the chunk sizes: tells data sets apart, wherever they lie.
    std::string fingerprint() const;
    /// By position of the layer in numeric order; empty when norm_stats.json is missing or lacks a
    /// layer.
    const std::vector<LayerStats>& stats() const { return stats_; }

    /// Rows [range) of a chunk, [range, L, 2, d] native elements: layer by layer inputs then
    /// targets. Every rank passes its own range. Collective. Throws UserError naming the chunk when
    /// it is missing, truncated or of another shape or type than metadata says. Warns once when a
    /// bfloat16 set has no negative value (reference-spec 1.2).
    void read(std::size_t chunk, Shard range, std::vector<std::byte>& out,
              const Communicator& communicator) const;

  private:
    void warn_when_clipped(const ChunkInfo& chunk, bool sign_here, Index rows_here,
                           const Communicator& communicator) const;

    std::string path_;
    std::string metadata_;
    std::vector<Index> layer_ids_;
    Index layers_ = 0;
    Index d_model_ = 0;
    Index tokens_ = 0;
    DType dtype_ = DType::float32;
    std::vector<ChunkInfo> chunks_;
    std::vector<LayerStats> stats_;
    mutable bool sign_seen_ = false;
};

}  // namespace clt
