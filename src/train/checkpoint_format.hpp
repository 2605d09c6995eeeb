// What a checkpoint file holds besides its arrays, and the checksums of both.
#pragma once

#include <limits>
#include <span>
#include <string>
#include <vector>

#include "clt/base/error.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {

inline constexpr int checkpoint_format_version = 2;

/// The content is at fault (cut, overwritten, another file), not the way to it.
class DamagedCheckpoint : public UserError {
  public:
    using UserError::UserError;
};

class NewerCheckpoint : public UserError {
  public:
    using UserError::UserError;
};

/// The root attributes, all texts.
struct CheckpointTexts {
    std::string header;  // JSON
    std::string cursor, job, extra;
    std::string checksums;  // JSON: "texts" of the four above, "blocks" of block_checksums
};

/// Every block of the arrays, one array after the other.
inline constexpr const char* block_checksums_name = "block_checksums";
/// Rows of a block of this array.
Index block_rows_of(const CheckpointArray& array);
Index blocks_of(const CheckpointArray& array, Index block_rows);

inline constexpr Index all_finite = std::numeric_limits<Index>::max();

/// Adds the sums of rows [own.begin, own.end) to their blocks' sums; data: [own.size(), width].
/// Parts may be summed over ranks in any order.
void add_block_sums(const CheckpointArray& array, Index block_rows, Shard own,
                    const std::byte* data, std::span<std::uint64_t> sums);
/// The first element of the rows that is not finite, as its place in the whole array; or the
/// largest Index.
Index first_not_finite(const CheckpointArray& array, Shard own, const std::byte* data);
/// "array value/decoder/layer_1/weight is NaN or infinite in row 4, column 3".
std::string not_finite_text(const CheckpointArray& array, Index place);
/// "array value/decoder/layer_1/weight, rows 0 to 8191, does not match its checksum".
std::string damaged_block_text(const StoredArray& array, std::size_t block);

/// texts.checksums stays empty.
CheckpointTexts make_texts(const CheckpointSnapshot& snapshot);
/// Fills texts.checksums.
void seal(CheckpointTexts& texts, const std::vector<std::uint64_t>& block_sums);
/// Rank 0's, for all. Collective.
CheckpointTexts broadcast(const CheckpointTexts& texts, const Communicator& communicator);
void write_texts(H5File& file, const CheckpointTexts& texts);

/// What a file says of itself, format 1 put in the words of format 2.
struct StoredHeader {
    CheckpointTexts texts;
    std::vector<std::uint64_t> block_sums;  // of all arrays in order
    std::vector<float> normalization;       // of the four arrays, in order; or empty
    Index bytes = 0;                        // of the file
};

/// Of one process, without MPI. Texts, block sums and normalisation are verified, and that all
/// arrays are there. Throws DamagedCheckpoint, or another UserError when the content is not to
/// blame.
StoredHeader load_header(const std::string& path);
StoredHeader broadcast(StoredHeader stored, const Communicator& communicator);
CheckpointHeader header_from(const std::string& path, const StoredHeader& stored);

/// normalization/{inputs,targets}/{mean,std} [L, d], in this order; none unless mean_std.
struct NormalizationArray : CheckpointArray {
    std::vector<float> values;
};
std::vector<NormalizationArray> normalization_arrays(const Normalization& normalization);

}  // namespace clt
