// A checkpoint is one HDF5 file of global arrays (features are a hyperslab), so any grid reloads
// it. Written to a temporary name, closed everywhere, agreed, fsynced, renamed, then the old ones
// are pruned. Arrays: value/, moment1/, moment2/ + ParamArray::name [features, width] and
// silence/layer_l [F]; root attributes carry the small state as text. Every array and the texts
// have a checksum that does not depend on the grid: a file that lost bytes anywhere is refused.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "clt/comm/process_grid.hpp"
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

/// Writes folder/step_<step>.h5. silence: [L, F_p] of this rank. Collective over grid.all(). Throws
/// UserError (full disk, no permission) on every rank; then the temporary file is gone and older
/// checkpoints are untouched.
void write_checkpoint(const std::string& folder, Backend& backend, const ProcessGrid& grid,
                      Params& params, Span<const Index> silence, const ModelConfig& model,
                      const CheckpointState& state);

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
