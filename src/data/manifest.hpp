// index.bin: which chunks a data set has and how many rows each (reference-spec 1.3).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "clt/base/types.hpp"

namespace clt {

struct ManifestEntry {
    Index chunk = 0;
    Index rows = 0;
    bool operator==(const ManifestEntry&) const = default;
};

/// Chunks with rows, ascending by id. Two layouts share the name: records (int32 chunk, int32 rows,
/// int64 first token) and, in older files, one (uint32 chunk, uint32 row) a token. A file is the
/// first when its rows add up to total_tokens, else the second. `path` is for messages. Throws
/// UserError when it is neither.
std::vector<ManifestEntry> parse_manifest(const std::string& bytes, Index total_tokens,
                                          const std::string& path);

/// The 3-field layout. Throws UserError when a chunk has more rows than its 32-bit field can hold.
std::string format_manifest(const std::vector<ManifestEntry>& chunks);

}  // namespace clt
