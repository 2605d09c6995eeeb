// What a checkpoint file holds besides its arrays, and the checksums of both.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "clt/io/hdf5.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {

inline constexpr int checkpoint_format_version = 1;

/// The root attributes, all texts.
struct CheckpointTexts {
    std::string header;  // JSON: format version, step, shape, activation, model, revision
    std::string cursor, job, extra;
    std::string checksums;  // JSON: array name -> hexadecimal sum; "texts": of the four above
};

/// By array name.
using Checksums = std::map<std::string, std::uint64_t>;

CheckpointTexts make_texts(const Shape& shape, const ModelConfig& model,
                           const CheckpointState& state);
/// Fills texts.checksums from the arrays' sums and the other texts.
void seal(CheckpointTexts& texts, const Checksums& arrays);

/// Rank 0's, for all. Collective.
CheckpointTexts broadcast(const CheckpointTexts& texts, const Communicator& communicator);

void write_texts(H5File& file, const CheckpointTexts& texts);
/// Throws UserError when the file is no checkpoint, of a newer format, or its texts are damaged.
CheckpointTexts read_texts(const H5File& file);
CheckpointInfo info_from(const std::string& path, const CheckpointTexts& texts);
Checksums checksums_from(const std::string& path, const CheckpointTexts& texts);

}  // namespace clt
