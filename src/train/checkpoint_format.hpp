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

/// Checksum of elements first_id, first_id + 1, ... of an array: the sum over elements of a 64-bit
/// mix of (id, bits), so parts may be summed over ranks in any order. A single changed element
/// always changes it.
std::uint64_t checksum_of(const float* values, Index count, Index first_id);
std::uint64_t checksum_of(const Index* values, Index count, Index first_id);

CheckpointTexts make_texts(const Shape& shape, const ModelConfig& model,
                           const CheckpointState& state);
/// Fills texts.checksums from the arrays' sums and the other texts.
void seal(CheckpointTexts& texts, const Checksums& arrays);

void write_texts(H5File& file, const CheckpointTexts& texts);
/// Throws UserError when the file is no checkpoint, of a newer format, or its texts are damaged.
CheckpointTexts read_texts(const H5File& file);
CheckpointInfo info_from(const std::string& path, const CheckpointTexts& texts);
Checksums checksums_from(const std::string& path, const CheckpointTexts& texts);

}  // namespace clt
