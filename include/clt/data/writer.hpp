// Writes an activation data set chunk by chunk, in the reference's layout (reference-spec 1): all
// ranks write a chunk together, rows shuffled inside it by seed and chunk number alone. A killed
// job goes on behind the last whole chunk. Memory: beside the caller's rows about 3 / (2 L) of
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "clt/base/float16.hpp"
#include "clt/comm/communicator.hpp"
#include "clt/io/folder_lock.hpp"

namespace clt {

struct DatasetWriterConfig {
    std::string folder;  // the data set itself; made when missing
    std::string model_name;
    std::string dataset;  // where the text came from
    std::string split;
    Index layers = 0;
    Index d_model = 0;
    DType dtype = DType::float32;
    Index chunk_tokens = 0;  // the flush threshold, for metadata.json; chunks may be larger
    std::uint64_t seed = 0;
    int gzip = 0;  // deflate level; 0: no filter
    /// JSON object of further metadata keys (tap points, context size, ...). A resumed job must
    /// give the same.
    std::string provenance = "{}";
};

class ColumnStatistics;
class H5File;
struct ChunkLayout;

class DatasetWriter {
  public:
    /// Starts a data set or continues an unfinished one. Throws UserError when the folder cannot be
    /// written, is in use by another job, or holds a data set (also an unfinished one) made with
    /// other settings or of which a file is missing or not whole. Collective.
    DatasetWriter(const DatasetWriterConfig& config, const Communicator& communicator);
    DatasetWriter(DatasetWriter&&) noexcept;
    ~DatasetWriter();

    /// True when the folder already holds this very data set, finished and whole: nothing is left
    /// to do.
    bool complete() const { return complete_; }
    Index chunks() const { return static_cast<Index>(rows_.size()); }
    Index tokens() const;
    /// What the caller passed with the last whole chunk: where to go on. Empty at a new start.
    const std::string& caller_state() const { return caller_state_; }

    /// Writes the next chunk. rows: this rank's tokens, [n, L, 2, d] (inputs then targets); global
    /// order is rank order, so any split of the same tokens over ranks gives the same file. A rank
    /// may pass none; when all pass none nothing is written. caller_state (rank 0's counts): kept
    /// for a resume. On return the chunk is on disk and counted. Collective. Throws UserError (full
    /// disk; NaN, infinity or a value beyond the storage type: nothing of the chunk is counted).
    void write_chunk(std::span<const float> rows, const std::string& caller_state);

    /// Writes index.bin, norm_stats.json and, last, metadata.json. Collective. Throws UserError.
    void finish();

  private:
    std::string settings() const;
    void resume();
    void save_progress() const;
    ChunkLayout chunk_layout() const;
    struct ChunkParts {
        Index rows = 0;
        Index row_bytes = 0;
        Index block_rows = 0;  // of an HDF5 chunk
        Shard own;             // rows that this rank stores
    };
    void write_compressed(std::optional<H5File>& file, const std::string& name,
                          const ChunkParts& parts, std::span<const std::byte> stored,
                          std::uint64_t checksum) const;
    void write_file_of_chunk(const std::string& path, std::span<const float> rows,
                             const std::vector<Index>& counts) const;

    DatasetWriterConfig config_;
    Communicator communicator_;
    std::optional<FolderLock> lock_;
    std::vector<Index> rows_;  // by chunk
    std::string caller_state_;
    std::unique_ptr<ColumnStatistics> statistics_;
    bool complete_ = false;
};

}  // namespace clt
