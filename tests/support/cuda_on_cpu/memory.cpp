// Device memory: allocations, and the host's copies with their checks.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>

#include "support/cuda_on_cpu/internals.hpp"

namespace emu {

Arena arena;
std::mutex api_mutex;

namespace {

constexpr std::size_t arena_bytes = std::size_t{1} << 30;
constexpr std::size_t alignment = 256;
constexpr std::size_t red_zone = 256;
constexpr int garbage = 0xFF;  // a NaN in every float format, -1 in integers

struct Allocation {
    std::size_t bytes;
    int number;
    bool live;
};

std::map<std::size_t, Allocation> allocations;  // by offset; freed ones until their place is reused
std::size_t cursor = shared_window_bytes;       // where the next allocation is looked for
std::size_t live_bytes = 0;
std::size_t limit_bytes = arena_bytes;
int allocation_count = 0;

constexpr std::size_t round_up(std::size_t n) {
    return (n + alignment - 1) / alignment * alignment;
}

void* map_pages(std::size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        throw std::runtime_error(fmt::format("the emulator cannot reserve {} bytes", bytes));
    return p;
}

/// The first gap at or behind `from` that holds `bytes` and its red zone; 0 when there is none.
std::size_t find_gap(std::size_t from, std::size_t bytes) {
    std::size_t begin = from;
    for (auto it = allocations.begin(); it != allocations.end(); ++it) {
        const auto& [offset, allocation] = *it;
        const std::size_t end = offset + round_up(allocation.bytes) + red_zone;
        if (!allocation.live || end <= begin) continue;
        if (offset >= begin + bytes + red_zone) break;
        begin = end;
    }
    return begin + bytes + red_zone <= arena.bytes ? begin : 0;
}

/// Calls visit(word, nibble of its bytes) for each word of [offset, offset + bytes) until it
/// returns false.
template <class Visit>
bool each_word(std::size_t offset, std::size_t bytes, Visit visit) {
    const std::size_t end = offset + bytes;
    while (offset < end) {
        const std::size_t first = offset % 4;
        const std::size_t n = std::min<std::size_t>(4 - first, end - offset);
        if (!visit(offset / 4, static_cast<std::uint8_t>(((1U << n) - 1) << first))) return false;
        offset += n;
    }
    return true;
}

bool allocated(const void* pointer, std::size_t bytes) {
    const std::size_t offset = arena_offset(pointer);
    if (bytes == 0) return true;
    if (offset >= arena.bytes || bytes > arena.bytes - offset) return false;
    return each_word(offset, bytes, [](std::size_t word, std::uint8_t nibble) {
        return ((arena.state[word] >> 4) & nibble) == nibble;
    });
}

bool written(const void* pointer, std::size_t bytes) {
    return each_word(arena_offset(pointer), bytes, [](std::size_t word, std::uint8_t nibble) {
        return (arena.state[word] & nibble) == nibble;
    });
}

void mark_written(const void* pointer, std::size_t bytes) {
    each_word(arena_offset(pointer), bytes, [](std::size_t word, std::uint8_t nibble) {
        arena.state[word] |= nibble;
        return true;
    });
}

void require_allocated(const char* who, const void* pointer, std::size_t bytes) {
    if (!allocated(pointer, bytes))
        throw Error(fmt::format("{}: {} bytes from {}: out of bounds", who, bytes,
                                describe_address(pointer)));
}

void require_written(const char* who, const void* pointer, std::size_t bytes) {
    require_allocated(who, pointer, bytes);
    if (!written(pointer, bytes))
        throw Error(fmt::format("{}: {} bytes from {}: not all of them were written", who, bytes,
                                describe_address(pointer)));
}

}  // namespace

void zero_pages(void* begin, std::size_t bytes) {
    constexpr std::uintptr_t page = 4096;
    const auto first = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t low = (first + page - 1) / page * page;
    const std::uintptr_t high = (first + bytes) / page * page;
    if (bytes < 64 * page) {
        __real_memset(begin, 0, bytes);
        return;
    }
    __real_memset(begin, 0, low - first);
    madvise(reinterpret_cast<void*>(low), high - low, MADV_DONTNEED);
    __real_memset(reinterpret_cast<void*>(high), 0, first + bytes - high);
}

void map_arena() {
    if (arena.base != nullptr) return;
    arena.state = static_cast<std::uint8_t*>(map_pages(arena_bytes / 4));
    arena.cells = static_cast<Cell*>(map_pages(arena_bytes / 4 * sizeof(Cell)));
    arena.base = static_cast<char*>(map_pages(arena_bytes));
    arena.bytes = arena_bytes;
}

std::string describe_address(const volatile void* address) {
    const std::size_t offset = arena_offset(address);
    if (offset >= arena.bytes)
        return fmt::format("{}, which is not device memory", const_cast<const void*>(address));
    if (offset < shared_window_bytes) return describe_shared(offset);
    auto next = allocations.upper_bound(offset);
    if (next == allocations.begin()) return "device memory before the first allocation";
    const auto& [begin, allocation] = *std::prev(next);
    const std::string name =
        fmt::format("{}allocation {} ({} bytes)", allocation.live ? "" : "freed ",
                    allocation.number, allocation.bytes);
    if (offset < begin + allocation.bytes)
        return fmt::format("byte {} of {}", offset - begin, name);
    const std::size_t behind = offset - begin - allocation.bytes;
    if (next != allocations.end() && next->first - offset < behind)
        return fmt::format("{} bytes before allocation {} ({} bytes)", next->first - offset,
                           next->second.number, next->second.bytes);
    return fmt::format("{} bytes behind the end of {}", behind, name);
}

void* device_malloc(std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    map_arena();
    if (bytes > limit_bytes || live_bytes > limit_bytes - bytes) return nullptr;
    const std::size_t room = round_up(bytes);
    std::size_t offset = find_gap(cursor, room);
    if (offset == 0) offset = find_gap(shared_window_bytes + red_zone, room);
    if (offset == 0) return nullptr;
    const std::size_t end = offset + std::max(room, alignment);
    auto freed = allocations.upper_bound(offset);
    if (freed != allocations.begin() &&
        std::prev(freed)->first + round_up(std::prev(freed)->second.bytes) > offset)
        --freed;
    while (freed != allocations.end() && freed->first < end) freed = allocations.erase(freed);
    allocations[offset] = {bytes, ++allocation_count, true};
    live_bytes += bytes;
    cursor = end + red_zone;
    __real_memset(arena.base + offset, garbage, bytes);
    mark_allocated(offset, bytes);
    return arena.base + offset;
}

void device_free(void* pointer) {
    if (pointer == nullptr) return;
    const std::lock_guard lock(api_mutex);
    const auto found = allocations.find(arena_offset(pointer));
    if (found == allocations.end() || !found->second.live)
        throw Error(
            fmt::format("device_free: {} is no live allocation", describe_address(pointer)));
    found->second.live = false;
    live_bytes -= found->second.bytes;
    mark_unallocated(found->first, found->second.bytes);
    zero_pages(pointer, found->second.bytes);
}

void set_memory_limit(std::size_t bytes) {
    limit_bytes = std::min(bytes, arena_bytes);
}
std::size_t memory_limit() {
    return limit_bytes;
}
std::size_t bytes_allocated() {
    return live_bytes;
}
bool is_device_memory(const void* pointer) {
    return arena_offset(pointer) < arena.bytes;
}

void copy_to_device(void* to, const void* host, std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    require_allocated("copy to the device", to, bytes);
    if (bytes == 0) return;
    if (is_device_memory(host)) throw Error("copy to the device: the source is device memory");
    __real_memcpy(to, host, bytes);
    mark_written(to, bytes);
}

void copy_to_host(void* host, const void* from, std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    require_written("copy to the host", from, bytes);
    if (bytes == 0) return;
    if (is_device_memory(host)) throw Error("copy to the host: the target is device memory");
    __real_memcpy(host, from, bytes);
}

void copy_on_device(void* to, const void* from, std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    require_allocated("copy on the device, source", from, bytes);
    require_allocated("copy on the device, target", to, bytes);
    const std::size_t source = arena_offset(from);
    const std::size_t target = arena_offset(to);
    const bool backwards = target > source;  // as memmove: an overlap is not overwritten unread
    for (std::size_t k = 0; k < bytes; ++k) {
        const std::size_t i = backwards ? bytes - 1 - k : k;
        const unsigned bit = (arena.state[(source + i) / 4] >> ((source + i) % 4)) & 1U;
        std::uint8_t& state = arena.state[(target + i) / 4];
        const unsigned place = (target + i) % 4;
        state = static_cast<std::uint8_t>((state & ~(1U << place)) | bit << place);
    }
    if (bytes > 0) __real_memmove(to, from, bytes);
}

void set_on_device(void* to, int value, std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    require_allocated("set on the device", to, bytes);
    if (bytes == 0) return;
    __real_memset(to, value, bytes);
    mark_written(to, bytes);
}

void library_reads(const char* who, const void* from, std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    require_written(who, from, bytes);
}

void library_writes(const char* who, void* to, std::size_t bytes) {
    const std::lock_guard lock(api_mutex);
    require_allocated(who, to, bytes);
    mark_written(to, bytes);
}

}  // namespace emu
