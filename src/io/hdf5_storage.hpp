// Whether the content of an HDF5 array is really there: HDF5 itself reads what was never written as
// zeros or leaves the reader's buffer as it was, and a collective read of it may never end.
#pragma once

#include <hdf5.h>

#include <string>
#include <vector>

#include "clt/base/types.hpp"

namespace clt::h5 {

/// Throws UserError naming the filter and the cure when this HDF5 lacks a filter (lzf, blosc, szip,
/// ...) that the array was compressed with.
void check_filters(hid_t dataset, const std::string& name);

/// Whether its elements lie in other files (external storage, a virtual dataset), which HDF5 reads
/// in one process only.
bool lies_elsewhere(hid_t dataset, const std::string& name);

/// Reads metadata only. path: of its file; name: of file and array. Throws UserError when a part
/// of the array has no storage, lies beyond the end of its file, or has a source that is missing
/// or too small.
void check_storage(hid_t dataset, const std::string& path, const std::string& name);

/// Places in its file of the first and last 4 KiB of the array's stored (compressed) bytes; none
/// when it is empty or lies in other files or in its header.
std::vector<Shard> stored_ends(hid_t dataset, const std::string& name);

}  // namespace clt::h5
