// A chunk's file as reader, writer and inspection see it: its arrays, that they are whole and as
// the data set says, and what identifies their content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "clt/data/dataset.hpp"
#include "clt/io/hdf5.hpp"

namespace clt {

/// Ids of the groups layer_<id>, ascending: HDF5 lists layer_10 before layer_2.
std::vector<Index> layer_ids_of(const H5File& file);

/// Throws UserError when the file has other layers.
void check_layers(const H5File& file, const std::vector<Index>& layer_ids);

/// Inputs (part 0) or targets (1) of layer_ids[layer]. Throws UserError when it is not whole or of
/// another shape or type. Collective when the file is.
H5Dataset open_array(const H5File& file, const ChunkLayout& layout, Index rows, std::size_t layer,
                     std::size_t part);

/// Sum over rows of mix(row number, checksum of the row's stored bytes): parts of an array may be
/// summed over ranks in any order, and rows that trade places change it. rows: stored rows first,
/// first + 1, ... of row_bytes each.
std::uint64_t checksum_of_rows(std::span<const std::byte> rows, Index first, Index row_bytes);

/// Kept as an attribute of the array, which other readers ignore. Collective when the file is.
void write_checksum(H5Dataset& array, std::uint64_t checksum);
/// Nothing: written by another program. Throws UserError when it is there but not a checksum.
std::optional<std::uint64_t> read_checksum(const H5Dataset& array);

/// Of a small file, for metadata.json and progress.bin.
std::string file_checksum(std::string_view bytes);

/// What tells a chunk's content from another's.
struct ChunkContent {
    std::vector<std::uint64_t> arrays;  // [layer, inputs | targets]: checksum or sample
    bool has_checksums = true;          // of every array
};

/// Metadata only, in this process alone. Throws UserError when the file is not the chunk it should
/// be or not whole. An array without a checksum counts by its place, its stored size and the first
/// and last 4 KiB of its stored bytes: that tells other models, texts, seeds and layers apart, and
/// not an edit in the middle of an array.
ChunkContent look_at_chunk(const std::string& path, Index rows, const ChunkLayout& layout);

}  // namespace clt
