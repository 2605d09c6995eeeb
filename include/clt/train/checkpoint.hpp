// A checkpoint is one HDF5 file of global arrays (features are a hyperslab), so any grid reloads
// it, and it stands alone: it holds what evaluating, converting or exporting the model needs.
// Taken into host memory, written to a temporary name, read back, fsynced, renamed. Format 2:
//   value/, moment1/, moment2/ + ParamArray::name   float32 [features, width]
//   silence/layer_l                                 int64 [F, 1], steps since a feature fired
//   normalization/{inputs,targets}/{mean,std}       float32 [L, d], with mean_std
//   block_checksums                                 uint64, of every block of every array in order
// and root attributes: clt_checkpoint (JSON: the header), cursor, job (TOML), extra (JSON) and
// checksums. A block is as many whole rows as 4 MiB hold, whatever the grid. log_threshold/ is the
// natural logarithm of jumprelu's thresholds. Format 1 is read too.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "clt/comm/process_grid.hpp"
#include "clt/data/training_data.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/model/params.hpp"

namespace clt {

/// The name of the file of a step: step_<step>.h5.
struct CheckpointName {
    Index step = 0;

    std::string text() const { return fmt::format("step_{}.h5", step); }
    /// Nothing for any other file name.
    static std::optional<CheckpointName> parse(std::string_view file_name);
};

/// batchtopk: the lowest score that the selection kept, for a conversion to fixed thresholds (it
/// plays no part in training or evaluation). 0 for other activations.
struct SelectionThreshold {
    double last = 0;     // of the last step
    double running = 0;  // mean over steps, each counting 0.99 of the one after it

    void add(double threshold);
};

/// What the trainer keeps in a checkpoint beside the arrays.
struct CheckpointState {
    Index step = 0;      // steps done
    Index tokens = 0;    // trained on
    std::string cursor;  // BatchSource::cursor()
    std::string job;     // the resolved job, TOML
    std::string extra;   // JSON object: the trainer's own state
    TrainingData data;
    SelectionThreshold threshold;
};

enum class ArrayRole {
    sharded,     // rows are features: each rank of a shard group has its own
    replicated,  // every rank has all rows
};

struct CheckpointArray {
    std::string name;
    H5Type type = H5Type::float32;
    Index rows = 0;
    Index width = 0;  // numbers a row
    ArrayRole role = ArrayRole::sharded;

    Index bytes() const { return rows * width * size_of(type); }
};

/// An array of a file: where it is, and what its content must be.
struct StoredArray : CheckpointArray {
    std::string stored_name;  // format 1 calls some arrays otherwise
    Index block_rows = 1;
    std::vector<std::uint64_t> block_sums;
};

/// What a checkpoint file says of itself, read once; its arrays may still be damaged.
struct CheckpointHeader {
    std::string path;
    int format_version = 0;
    Shape shape;
    ModelConfig model;  // as training had it: an evaluation has no other source
    std::string revision;
    CheckpointState state;
    std::vector<StoredArray> arrays;
    std::string seal;  // changes with any part of the file
    Index bytes = 0;   // of the file
};

/// One array of a snapshot and this rank's part of it.
struct SnapshotArray : CheckpointArray {
    Shard own;         // rows this rank has and writes; every row belongs to exactly one rank
    Index offset = 0;  // bytes into the snapshot's memory
};

/// Everything a checkpoint holds, copied into host memory: training goes on while it is written.
class CheckpointSnapshot {
  public:
    CheckpointSnapshot() = default;
    CheckpointSnapshot(CheckpointSnapshot&&) = default;  // no copies: the memory is pinned
    CheckpointSnapshot& operator=(CheckpointSnapshot&&) = default;

    /// Waits for the backend's work, then copies. Replicas share the rows of their shard, so all
    /// ranks together hold everything once. silence: [L, F_p] of this rank. The memory stays from
    /// one take() to the next. Not collective.
    void take(Backend& backend, const ProcessGrid& grid, Params& params, Span<const Index> silence,
              const ModelConfig& model, const CheckpointState& state);

    Index step() const { return state_.step; }
    const Shape& shape() const { return shape_; }
    const ModelConfig& model() const { return model_; }
    const CheckpointState& state() const { return state_; }
    const std::vector<SnapshotArray>& arrays() const { return arrays_; }
    /// [own.size(), width] elements.
    const std::byte* data(const SnapshotArray& array) const {
        return memory_.data() + array.offset;
    }
    /// Of host memory on this rank.
    Index bytes() const { return static_cast<Index>(memory_.size()); }
    /// Of the file, a little more than it will have.
    Index file_bytes() const;

  private:
    Shape shape_;
    ModelConfig model_;
    CheckpointState state_;
    std::vector<SnapshotArray> arrays_;
    std::vector<std::byte> memory_;
    std::shared_ptr<const void> pinned_;  // memory_, for fast copies from a device
};

/// A checkpoint every byte of which was compared with its checksums, and how to know it again.
struct VerifiedCheckpoint {
    Index step = 0;
    Index bytes = 0;
    std::string seal;
};

/// Writes folder/step_<step>.h5 from host memory alone and reads it back, so any thread may call it
/// that has HDF5 and `all` (of the ranks that took the snapshot, in any order) to itself.
/// Collective over `all`. Rank 0's state counts. Throws on every rank UserError (no permission; a
/// number that is not finite, by array, row and column) or DiskFullError; then the temporary file
/// is gone and older checkpoints are untouched.
VerifiedCheckpoint write_checkpoint(const std::string& folder, const CheckpointSnapshot& snapshot,
                                    const Communicator& all);

/// Throws DiskFullError on every rank when the folder's disk has no room for a file of that many
/// bytes. Collective (rank 0 looks).
void require_disk_space(const std::string& folder, Index bytes, const Communicator& all);

/// Throws UserError when the file is missing, cut (at any byte), damaged or not a checkpoint, or of
/// a newer format. Collective over the communicator (rank 0 reads).
CheckpointHeader read_checkpoint_header(const std::string& path, const Communicator& communicator);

/// Fills params and silence (empty on every rank: not wanted, as in evaluation) from a file written
/// on any grid. moments false: values only. Throws UserError naming file, array and shapes when it
/// does not fit, or array and rows when a block's checksum is wrong or a number is not finite.
/// Collective over grid.all().
void read_checkpoint(const CheckpointHeader& header, Backend& backend, const ProcessGrid& grid,
                     Params& params, Span<Index> silence, bool moments);

/// Reads every array and returns what is wrong, a sentence each: blocks with wrong checksums (array
/// and rows), values that are not finite (array, row, column). stoppable: throws Stopped when a
/// signal came. Collective.
std::vector<std::string> verify_checkpoint(const CheckpointHeader& header,
                                           const Communicator& communicator, bool stoppable = true);

struct FoundCheckpoint {
    std::optional<CheckpointHeader> newest;  // whole: all its bytes were verified
    std::vector<std::string> passed_over;    // newer files that are damaged, foreign or renamed
};

/// The newest checkpoint in the folder that is whole; those passed over are named in warnings.
/// Throws UserError when one cannot be judged: no permission, an I/O error, a newer format (a run
/// must not go on from an older one without being told to). Collective.
FoundCheckpoint find_newest_checkpoint(const std::string& folder, const Communicator& communicator);

/// Which checkpoints of a run's folder are known to be whole, and which may go. For one rank, rank
/// 0.
class CheckpointKeeper {
  public:
    /// resumed_from: null for a new run.
    CheckpointKeeper(std::string folder, const CheckpointHeader* resumed_from);

    void written(const VerifiedCheckpoint& checkpoint);
    /// Removes what is older than the newest `keep` verified checkpoints, but never best_step's (0:
    /// none), and left-over temporary files. Files that are damaged, foreign or renamed do not
    /// count and stay.
    void prune(Index keep, Index best_step);

  private:
    bool still_there(const VerifiedCheckpoint& checkpoint) const;

    std::string folder_;
    std::vector<VerifiedCheckpoint> verified_;
};

}  // namespace clt
