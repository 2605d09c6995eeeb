// What the emulator's files share: fibers, the shadow of device memory, and how an error leaves.
//
// Shadow: each byte of the arena has an allocated bit and a written bit, each 4-byte word a Cell of
// its last accesses. Blocks run one after another, so one number, the epoch, orders them: it grows
// at every launch, block and __syncthreads. Inside an epoch the lanes of a warp are ordered by
// vector clocks (Lamport 1978, Mattern 1989) that every warp intrinsic joins.
#pragma once

#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

#include "support/cuda_on_cpu/emulator.hpp"

// The C library's own: in executables with the emulator, memcpy and the others are hooks too.
extern "C" {
void* __real_memcpy(void* to, const void* from, std::size_t bytes);
void* __real_memmove(void* to, const void* from, std::size_t bytes);
void* __real_memset(void* to, int value, std::size_t bytes);
}

namespace emu {

/// Who made an access and when: epoch (32 bits), thread of the block (10), the lane's clock (22).
/// 0: nobody. Records of an earlier launch are smaller than `launch_floor`.
using Record = std::uint64_t;
inline constexpr unsigned clock_bits = 22;
constexpr Record make_record(std::uint64_t epoch, unsigned thread, std::uint32_t clock) {
    return epoch << 32 | std::uint64_t{thread} << clock_bits | clock;
}
constexpr std::uint64_t epoch_of(Record r) {
    return r >> 32;
}
constexpr unsigned thread_of(Record r) {
    return static_cast<unsigned>(r >> clock_bits) & 1023U;
}
constexpr std::uint32_t clock_of(Record r) {
    return static_cast<std::uint32_t>(r) & ((1U << clock_bits) - 1);
}

/// The accesses to a word that no later one makes redundant. Of its readers, and of those that used
/// atomics, the first and one of another warp are enough: a third thread's write races with one of
/// them when it races with any. If all are of one warp, the last is kept; only partial warp masks
/// that order a write behind both, and not behind one between, then hide a race.
struct Cell {
    Record write;  // split_tag | index: the bytes of this word have cells of their own
    std::array<Record, 2> reads;
    std::array<Record, 2> atomics;
};
inline constexpr Record split_tag = std::uint64_t{0xFFFFFFFFU} << 32;

struct Arena {
    char* base;
    std::size_t bytes;
    std::uint8_t* state;  // a byte per word: low nibble written, high nibble allocated
    Cell* cells;
};
extern Arena arena;
inline constexpr std::size_t shared_window_bytes = std::size_t{1} << 20;  // the arena's beginning
/// Maps the arena at the first call.
void map_arena();
/// memset to 0 that gives whole pages of a large range back to the system.
void zero_pages(void* begin, std::size_t bytes);
inline std::size_t arena_offset(const volatile void* address) {
    return static_cast<std::size_t>(reinterpret_cast<std::uintptr_t>(address) -
                                    reinterpret_cast<std::uintptr_t>(arena.base));
}
/// [offset, offset + bytes) of the arena becomes uninitialised memory, or no memory.
void mark_allocated(std::size_t offset, std::size_t bytes);
void mark_unallocated(std::size_t offset, std::size_t bytes);

enum class Waiting { no, block, warp, exited };

struct Fiber {
    boost::context::detail::fcontext_t context;
    char* stack_low;
    char* stack_high;
    Record record;  // what its accesses leave in the shadow now
    unsigned thread;
    uint3 index;

    Waiting waiting;
    int operation;  // a BlockOperation or WarpOperation
    const char* file;
    int line;
    unsigned mask;
    std::uint64_t value;  // its operand, then its result
    int lane;
    int width;
};
/// Null while the host runs.
extern constinit thread_local Fiber* current;

/// The running launch.
struct Launch {
    const char* kernel;
    dim3 grid;
    dim3 block;
    const void* parameters;
    std::size_t parameter_bytes;
    Record launch_floor;
    Record block_floor;
    uint3 block_index;
};
extern Launch launch_now;
extern std::mutex api_mutex;

/// Ordered before what the running thread does next.
bool ordered(Record earlier, const Fiber& now);
/// "block (1, 0, 0), thread (5, 0, 0)" of a record of this launch.
std::string describe(Record record);

/// The emulator itself at work inside a kernel: its own accesses are the host's.
struct AsHost {
    Fiber* was = std::exchange(current, nullptr);
    AsHost() = default;
    AsHost(const AsHost&) = delete;
    AsHost& operator=(const AsHost&) = delete;
    ~AsHost() { current = was; }
};

/// Ends the launch with "kernel, block, thread: what", or throws what when `who` is null (the
/// host). Fibers are left as they are, never unwound: the hooks are called where the compiler
/// expects no exception.
[[noreturn]] void leave(const Fiber* who, const std::string& what);
/// " (addr2line -Cfie PROGRAM OFFSET)".
std::string describe_code(const void* code);

/// what() makes the sentence.
template <class What>
[[noreturn]] void fail(What what) {
    const Fiber* who = std::exchange(current, nullptr);
    leave(who, what());
}
/// The same with the line of the code, for who runs addr2line.
template <class What>
[[noreturn]] void fail_at(const void* code, What what) {
    fail([&] { return what() + describe_code(code); });
}
/// "byte 12 of allocation 3 (64 bytes)".
std::string describe_address(const volatile void* address);
/// "byte 12 of shared array tile (64 bytes)"; offset into the shared window.
std::string describe_shared(std::size_t offset);

enum class Access { read, write, atomic, exchange };
/// An access of the running thread, or of the host, to any address.
void check_access(const volatile void* address, std::size_t bytes, Access access, const void* code);

/// splitmix64, Steele et al. 2014.
inline std::uint64_t next_random(std::uint64_t& state) {
    std::uint64_t z = state += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

}  // namespace emu
