// Runs CUDA kernels on the CPU, one fiber a thread and one block after another, from the source
// that nvcc compiles. GCC's -fsanitize=thread calls a hook at every memory access of that source;
// our hooks (hooks.cpp) find accesses outside device memory, uninitialised reads, races, and the
// scheduler finds barriers that threads do not share. It says nothing about speed, and runs streams
// in the order of the calls. Blocks of a launch count as unordered whatever they do: what one wrote
// reaches another only by atomics, or by the next launch.
//
// This page is the host's side; device_names.hpp is what a kernel sees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "support/cuda_on_cpu/device_names.hpp"

namespace emu {

/// A bug of the code that is emulated, in one sentence: kernel, block, thread and what it did.
/// After it is thrown out of a launch, the next launch works; memory keeps what was written.
/// Host code that touches device memory throws it too, where the compiler let it: it takes a read
/// or a memcpy for something that cannot throw, and may terminate with this message instead.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// Uninitialised device memory, 256-byte aligned, with at least 256 bytes of no allocation on both
/// sides. Null when the limit or the arena is exhausted; 0 bytes give an address of no bytes.
void* device_malloc(std::size_t bytes);
/// Null is allowed. Throws Error for an address that is no live allocation.
void device_free(void* pointer);
/// Live allocations may add up to this; the arena (1 GiB) is the most, and the default.
void set_memory_limit(std::size_t bytes);
std::size_t memory_limit();
/// The sum of the live allocations.
std::size_t bytes_allocated();
bool is_device_memory(const void* pointer);

/// Copies of the runtime's stand-ins. They throw Error for bytes that are not allocated;
/// copy_to_host also for bytes that nobody wrote. copy_on_device takes overlap, and copies "nobody
/// wrote this" along.
void copy_to_device(void* to, const void* host, std::size_t bytes);
void copy_to_host(void* host, const void* from, std::size_t bytes);
void copy_on_device(void* to, const void* from, std::size_t bytes);
void set_on_device(void* to, int value, std::size_t bytes);

/// For stand-ins of libraries (cuBLAS, NCCL), which compute on device memory themselves: throws
/// Error unless [from, from + bytes) is allocated and written; `who` begins the message.
void library_reads(const char* who, const void* from, std::size_t bytes);
/// Throws Error unless [to, to + bytes) is allocated; the bytes count as written from then on.
void library_writes(const char* who, void* to, std::size_t bytes);

/// The order of blocks and threads from now on. 0: ascending; otherwise drawn from the seed.
/// A kernel whose result depends on it has a race that the hooks cannot see (float atomics).
void set_order(std::uint64_t seed);

}  // namespace emu
