// How much memory this host has left for us.
#pragma once

#include <string>

#include "clt/base/types.hpp"

namespace clt {

/// Bytes that can be allocated on this host before it swaps or the job is killed: MemAvailable of
/// /proc/meminfo, and what each memory cgroup (v1 or v2) above this process has left when that is
/// less; pages a cgroup can drop count as free. root: where /proc and /sys are looked for, for
/// tests. Not collective. Throws LibraryError when /proc/meminfo cannot be read.
Index available_host_bytes(const std::string& root = "");

}  // namespace clt
