// A checkpoint is one HDF5 file of global arrays (features are a hyperslab), so any grid reloads
// it. Written to a temporary name, closed everywhere, agreed, fsynced, renamed, then the old ones
// are pruned. Arrays: value/, moment1/, moment2/ + ParamArray::name [features, width] and
// silence/layer_l [F]; root attributes carry the small state as text. Every array and the texts
// have a checksum that does not depend on the grid: a file that lost bytes anywhere is refused.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clt/comm/process_grid.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/model/params.hpp"

namespace clt {

struct CheckpointState {
    Index step = 0;      // steps done
    std::string cursor;  // BatchSource::cursor()
    std::string job;     // the resolved job, TOML
    std::string extra;   // JSON object: the trainer's own state
};

/// What a checkpoint file says of itself, read without its arrays.
struct CheckpointInfo {
    std::string path;
    Index step = 0;
    Shape shape;
    std::string activation;
    ModelConfig model;  // as write_checkpoint got it: an evaluation has no other source
    std::string revision;
    CheckpointState state;
};

/// One array of a checkpoint: what the file's header says of it, and this rank's part.
struct SnapshotArray {
    std::string name;
    H5Type type = H5Type::float32;
    Index rows = 0;    // of the file's array
    Index width = 0;   // numbers a row
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

  private:
    Shape shape_;
    ModelConfig model_;
    CheckpointState state_;
    std::vector<SnapshotArray> arrays_;
    std::vector<std::byte> memory_;
    std::shared_ptr<const void> pinned_;  // memory_, for fast copies from a device
};

/// Writes folder/step_<step>.h5 from host memory alone, so any thread may call it that has HDF5 and
/// `all` (of the ranks that took the snapshot, in any order) to itself. Collective over `all`. Rank
/// 0's state counts. Throws UserError (full disk, no permission) on every rank; then the temporary
/// file is gone and older checkpoints are untouched.
void write_checkpoint(const std::string& folder, const CheckpointSnapshot& snapshot,
                      const Communicator& all);

/// Fills params and silence (empty on every rank: not wanted, as in evaluation) from the file,
/// written on any grid. moments false: values only. Throws UserError naming file, array and shapes
/// when it does not fit, or when an array's checksum is wrong. Collective over grid.all().
CheckpointState read_checkpoint(const std::string& path, Backend& backend, const ProcessGrid& grid,
                                Params& params, Span<Index> silence, bool moments);

/// Shape, activation and state of a whole checkpoint; its texts are verified, its arrays not.
/// Throws UserError when it is missing, cut (at any byte) or not a checkpoint. Collective over the
/// communicator (rank 0 reads).
CheckpointInfo inspect_checkpoint(const std::string& path, const Communicator& communicator);

/// Reads every array and returns what is wrong, a sentence each: wrong checksums, values that are
/// not finite (array, row, column). Throws as inspect_checkpoint. Collective.
std::vector<std::string> verify_checkpoint(const std::string& path,
                                           const Communicator& communicator);

/// The newest checkpoint in the folder that is whole; those that are not are named in a warning.
/// Collective.
std::optional<CheckpointInfo> find_newest_checkpoint(const std::string& folder,
                                                     const Communicator& communicator);

/// Keeps the newest `keep` and the one called `best` (empty: none); removes left-over temporary
/// files. Rank 0 only.
void prune_checkpoints(const std::string& folder, Index keep, const std::string& best);

}  // namespace clt
