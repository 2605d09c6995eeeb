// An activation data set on disk: chunks of rows (tokens) for every layer, in the layout of
// crosslayer-coding (reference-spec 1). Read by row range; element type native.
#pragma once

#include <cstdint>
#include <span>
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

/// What the chunks of a data set have in common.
struct ChunkLayout {
    std::vector<Index> layer_ids;  // ascending
    Index d_model = 0;
    DType dtype = DType::float32;
};

/// mean and std of one layer's columns, as norm_stats.json holds them.
struct ColumnStats {
    std::vector<float> mean, std;  // [d]
};
struct LayerStats {
    ColumnStats inputs, targets;
};

/// When rows are compared with the checksums that our writer left.
enum class VerifyData { off, first_use, always };

struct DatasetOptions {
    VerifyData verify = VerifyData::off;
    /// Takes what is wrong with chunk files instead of an exception, for a report on all of them.
    /// The same on every rank.
    std::vector<std::string>* problems = nullptr;
};

class ActivationDataset {
  public:
    /// Reads metadata.json, index.bin (3-field and legacy 2-field, rule of spec 1.3) and
    /// norm_stats.json on rank 0 and broadcasts; then the ranks share out the chunk files and look
    /// at every array of each (metadata only): rows, width, type, filters, and that its storage is
    /// wholly there. Throws UserError naming the file and what was expected. Collective.
    ActivationDataset(const std::string& path, const Communicator& communicator,
                      const DatasetOptions& options = {});

    const std::string& path() const { return path_; }
    Index layers() const { return static_cast<Index>(layout_.layer_ids.size()); }
    Index d_model() const { return layout_.d_model; }
    Index tokens() const { return tokens_; }
    DType dtype() const { return layout_.dtype; }
    /// Numbers of the layer_<id> groups, ascending; they need not be 0..L-1.
    const std::vector<Index>& layer_ids() const { return layout_.layer_ids; }
    const std::vector<ChunkInfo>& chunks() const { return chunks_; }
    const std::string& metadata() const { return metadata_; }  // JSON text
    /// By position of the layer in numeric order; empty when norm_stats.json is missing or lacks a
    /// layer.
    const std::vector<LayerStats>& stats() const { return stats_; }

    /// The content in 16 hexadecimal digits: of every array's checksum, the rows of the chunks in
    /// order, type, shape, layer ids and the numbers of norm_stats.json; not of path, names, time
    /// or other words of metadata.json. When an array has no checksum (another program wrote it)
    /// "sampled-" stands in front: then of the ends of what is stored, see look_at_chunk.
    const std::string& fingerprint() const { return fingerprint_; }
    /// By which checkpoints of format 1 know a set: of metadata.json's text and the chunks' rows.
    std::string format_1_fingerprint() const;
    /// Every array has a checksum.
    bool has_checksums() const { return has_checksums_; }
    /// [layer, inputs | targets] of a chunk; for a set with checksums.
    std::span<const std::uint64_t> checksums(std::size_t chunk) const;

    /// Rows [range) of a chunk, [range, L, 2, d] native elements: layer by layer inputs then
    /// targets. Every rank passes its own range. Collective. Throws UserError naming the chunk when
    /// it is missing, truncated or of another shape or type than metadata says, or when it is to be
    /// verified and does not match a checksum (then all of it is read once, whatever the ranges).
    void read(std::size_t chunk, Shard range, std::vector<std::byte>& out,
              const Communicator& communicator) const;

    /// Throws UserError for a bfloat16 set that lost its negative values (reference-spec 1.2).
    /// Reads a few rows. Collective.
    void refuse_lost_signs(const Communicator& communicator) const;
    /// Whether negative values must occur: some column of norm_stats.json, which is made before
    /// the values are stored, has a negative mean, or there are no statistics.
    bool expects_negative_values() const;

  private:
    void look_at_chunks(const Communicator& communicator, const DatasetOptions& options);
    void check_constant_columns(const Communicator& communicator) const;
    bool must_verify(std::size_t chunk) const;

    std::string path_;
    std::string metadata_;
    ChunkLayout layout_;
    Index tokens_ = 0;
    std::vector<ChunkInfo> chunks_;
    std::vector<LayerStats> stats_;
    std::string fingerprint_;
    bool has_checksums_ = false;
    std::vector<std::uint64_t> contents_;  // [chunk, layer, inputs | targets]
    VerifyData verify_;
    mutable std::vector<bool> verified_;  // by chunk
};

}  // namespace clt
