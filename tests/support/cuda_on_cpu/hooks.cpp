// What GCC's -fsanitize=thread, alignment and bounds call in the code that is emulated, in place of
// libtsan and libubsan. The names and signatures are the compiler's.
#include <fmt/format.h>

#include <atomic>

#include "support/cuda_on_cpu/internals.hpp"

using emu::Access;
using emu::check_access;

namespace {

/// What an access's address alone says of it.
enum class Place { fine, doubtful, words_of_arena };
template <std::size_t bytes>
inline Place place_of_access(const void* address, std::size_t offset) {
    const emu::Fiber* now = emu::current;
    if (offset < emu::arena.bytes)
        return now != nullptr && offset % 4 == 0 ? Place::words_of_arena : Place::doubtful;
    const auto* first = static_cast<const char*>(address);
    const bool own =
        now == nullptr || (first >= now->stack_low && first + bytes <= now->stack_high);
    return own ? Place::fine : Place::doubtful;
}

/// Almost every access: whole words that are allocated and written, and whose last write is of an
/// earlier launch, or that only this thread touched since.
template <std::size_t bytes>
inline bool is_plain_read(const void* address) {
    const emu::Fiber* now = emu::current;
    const std::size_t offset = emu::arena_offset(address);
    const Place place = place_of_access<bytes>(address, offset);
    if (place != Place::words_of_arena) return place == Place::fine;
    for (std::size_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
        if (emu::arena.state[word] != 0xFF) return false;
        emu::Cell& cell = emu::arena.cells[word];
        const emu::Record floor = emu::launch_now.launch_floor;
        if ((cell.write >= floor && cell.write != now->record) || cell.atomics[0] >= floor ||
            cell.atomics[1] >= floor)
            return false;
        if (cell.reads[0] == now->record) continue;
        if (cell.reads[0] >= floor) return false;
        cell.reads[0] = now->record;
    }
    return true;
}

template <std::size_t bytes>
inline bool is_plain_write(void* address) {
    const emu::Fiber* now = emu::current;
    const std::size_t offset = emu::arena_offset(address);
    const Place place = place_of_access<bytes>(address, offset);
    if (place != Place::words_of_arena) return place == Place::fine;
    const emu::Record floor = emu::launch_now.launch_floor;
    for (std::size_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
        if (emu::arena.state[word] < 0xF0) return false;
        emu::Cell& cell = emu::arena.cells[word];
        if ((cell.write >= floor && cell.write != now->record) ||
            (cell.reads[0] >= floor && cell.reads[0] != now->record) || cell.reads[1] >= floor ||
            cell.atomics[0] >= floor || cell.atomics[1] >= floor)
            return false;
        cell.write = now->record;
        emu::arena.state[word] = 0xFF;
    }
    return true;
}

/// The handlers' first argument begins with this.
struct SourceLocation {
    const char* file;
    std::uint32_t line;
    std::uint32_t column;
};

std::string place_of(const SourceLocation& location) {
    std::string file = location.file;
    return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), location.line);
}

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define CLT_EMU_ACCESS(bytes)                                                   \
    void __tsan_read##bytes(void* p) {                                          \
        if (!is_plain_read<bytes>(p))                                           \
            check_access(p, bytes, Access::read, __builtin_return_address(0));  \
    }                                                                           \
    void __tsan_write##bytes(void* p) {                                         \
        if (!is_plain_write<bytes>(p))                                          \
            check_access(p, bytes, Access::write, __builtin_return_address(0)); \
    }                                                                           \
    void __tsan_volatile_read##bytes(void* p) {                                 \
        check_access(p, bytes, Access::read, __builtin_return_address(0));      \
    }                                                                           \
    void __tsan_volatile_write##bytes(void* p) {                                \
        check_access(p, bytes, Access::write, __builtin_return_address(0));     \
    }
CLT_EMU_ACCESS(4)
CLT_EMU_ACCESS(8)
CLT_EMU_ACCESS(16)
#undef CLT_EMU_ACCESS

#define CLT_EMU_ACCESS(name, bytes)                                         \
    void __tsan_##name##read##bytes(void* p) {                              \
        check_access(p, bytes, Access::read, __builtin_return_address(0));  \
    }                                                                       \
    void __tsan_##name##write##bytes(void* p) {                             \
        check_access(p, bytes, Access::write, __builtin_return_address(0)); \
    }
CLT_EMU_ACCESS(, 1)
CLT_EMU_ACCESS(, 2)
CLT_EMU_ACCESS(volatile_, 1)
CLT_EMU_ACCESS(volatile_, 2)
CLT_EMU_ACCESS(unaligned_, 2)
CLT_EMU_ACCESS(unaligned_, 4)
CLT_EMU_ACCESS(unaligned_, 8)
CLT_EMU_ACCESS(unaligned_, 16)
#undef CLT_EMU_ACCESS

void __tsan_read_range(void* p, std::size_t bytes) {
    check_access(p, bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
    check_access(p, bytes, Access::write, __builtin_return_address(0));
}
void __tsan_vptr_read(void** p) {
    check_access(p, sizeof *p, Access::read, __builtin_return_address(0));
}
void __tsan_vptr_update(void** p, void*) {
    check_access(p, sizeof *p, Access::write, __builtin_return_address(0));
}

// std::atomic in host code, which these hooks replace by the same operations; kernels use CUDA's.
void __tsan_atomic_thread_fence(int) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
}
void __tsan_atomic_signal_fence(int) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
}
#define CLT_EMU_FETCH(bits, name)                                                            \
    std::uint##bits##_t __tsan_atomic##bits##_fetch_##name(volatile void* p,                 \
                                                           std::uint##bits##_t value, int) { \
        check_access(p, bits / 8, Access::atomic, __builtin_return_address(0));              \
        return __atomic_fetch_##name(static_cast<volatile std::uint##bits##_t*>(p), value,   \
                                     __ATOMIC_SEQ_CST);                                      \
    }
#define CLT_EMU_ATOMICS(bits)                                                                     \
    CLT_EMU_FETCH(bits, add)                                                                      \
    CLT_EMU_FETCH(bits, sub)                                                                      \
    CLT_EMU_FETCH(bits, and)                                                                      \
    CLT_EMU_FETCH(bits, or)                                                                       \
    CLT_EMU_FETCH(bits, xor)                                                                      \
    std::uint##bits##_t __tsan_atomic##bits##_load(const volatile void* p, int) {                 \
        check_access(p, bits / 8, Access::read, __builtin_return_address(0));                     \
        return __atomic_load_n(static_cast<const volatile std::uint##bits##_t*>(p),               \
                               __ATOMIC_SEQ_CST);                                                 \
    }                                                                                             \
    void __tsan_atomic##bits##_store(volatile void* p, std::uint##bits##_t value, int) {          \
        check_access(p, bits / 8, Access::write, __builtin_return_address(0));                    \
        __atomic_store_n(static_cast<volatile std::uint##bits##_t*>(p), value, __ATOMIC_SEQ_CST); \
    }                                                                                             \
    std::uint##bits##_t __tsan_atomic##bits##_exchange(volatile void* p,                          \
                                                       std::uint##bits##_t value, int) {          \
        check_access(p, bits / 8, Access::exchange, __builtin_return_address(0));                 \
        return __atomic_exchange_n(static_cast<volatile std::uint##bits##_t*>(p), value,          \
                                   __ATOMIC_SEQ_CST);                                             \
    }                                                                                             \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile void* p, void* expected,           \
                                                      std::uint##bits##_t value, int, int) {      \
        check_access(p, bits / 8, Access::atomic, __builtin_return_address(0));                   \
        return __atomic_compare_exchange_n(static_cast<volatile std::uint##bits##_t*>(p),         \
                                           static_cast<std::uint##bits##_t*>(expected), value,    \
                                           false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
    }                                                                                             \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile void* p, void* expected,             \
                                                    std::uint##bits##_t value, int a, int b) {    \
        return __tsan_atomic##bits##_compare_exchange_strong(p, expected, value, a, b);           \
    }
CLT_EMU_ATOMICS(8)
CLT_EMU_ATOMICS(16)
CLT_EMU_ATOMICS(32)
CLT_EMU_ATOMICS(64)
#undef CLT_EMU_ATOMICS
#undef CLT_EMU_FETCH

void __ubsan_handle_type_mismatch_v1(const SourceLocation* where, void* address) {
    emu::fail([&] {
        return fmt::format("misaligned: access at {} ({})", emu::describe_address(address),
                           place_of(*where));
    });
}
void __ubsan_handle_out_of_bounds(const SourceLocation* where, void* index) {
    emu::fail([&] {
        return fmt::format("out of bounds: index {} of an array ({})",
                           reinterpret_cast<std::intptr_t>(index), place_of(*where));
    });
}

// -Wl,--wrap: the compiler's hooks do not see what the C library copies.
void* __wrap_memcpy(void* to, const void* from, std::size_t bytes) {
    check_access(from, bytes, Access::read, __builtin_return_address(0));
    check_access(to, bytes, Access::write, __builtin_return_address(0));
    return __real_memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, std::size_t bytes) {
    check_access(from, bytes, Access::read, __builtin_return_address(0));
    check_access(to, bytes, Access::write, __builtin_return_address(0));
    return __real_memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int value, std::size_t bytes) {
    check_access(to, bytes, Access::write, __builtin_return_address(0));
    return __real_memset(to, value, bytes);
}

}  // extern "C"
