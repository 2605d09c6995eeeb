// What an access may do: the checks behind every hook.
#include <fmt/format.h>
#include <link.h>

#include <algorithm>
#include <vector>

#include "support/cuda_on_cpu/internals.hpp"

namespace emu {
namespace {

using SplitCells = std::array<Cell, 4>;  // one a byte, for a word that was accessed in part

std::vector<SplitCells> split_cells;
std::vector<std::uint32_t> free_splits;

bool is_split(const Cell& cell) {
    return cell.write >= split_tag;
}
SplitCells& split_of(const Cell& cell) {
    return split_cells[static_cast<std::uint32_t>(cell.write)];
}

void split(Cell& cell) {
    const AsHost scope;
    if (free_splits.empty()) {
        free_splits.push_back(static_cast<std::uint32_t>(split_cells.size()));
        split_cells.emplace_back();
    }
    const std::uint32_t index = free_splits.back();
    free_splits.pop_back();
    split_cells[index].fill(cell);
    cell = {split_tag | index, {}, {}};
}

void release_split(const Cell& cell) {
    const AsHost scope;
    if (is_split(cell)) free_splits.push_back(static_cast<std::uint32_t>(cell.write));
}

const char* name_of(Access access) {
    switch (access) {
        case Access::read:
            return "read";
        case Access::write:
            return "write";
        default:
            return "atomic operation";
    }
}

struct Attempt {
    const volatile void* address;
    std::size_t bytes;
    Access access;
    const void* code;

    std::string text() const {
        return fmt::format("{} of {} bytes at {}", name_of(access), bytes,
                           describe_address(address));
    }
};

[[noreturn]] void fail_race(const Attempt& attempt, Record other, Access others_access) {
    fail_at(attempt.code, [&] {
        return fmt::format("race: {} and the {} of {}: nothing orders them", attempt.text(),
                           name_of(others_access), describe(other));
    });
}

void require_ordered(const Attempt& attempt, Record other, Access others_access, const Fiber& now) {
    if (!ordered(other, now)) fail_race(attempt, other, others_access);
}

/// Keeps what `now` is not ordered behind, and its own record; see Cell.
void insert(std::array<Record, 2>& kept, const Fiber& now) {
    if (ordered(kept[0], now)) {
        kept[0] = now.record;
        if (ordered(kept[1], now)) kept[1] = 0;
    } else if (ordered(kept[1], now) || thread_of(kept[0]) / 32 == thread_of(kept[1]) / 32) {
        kept[1] = now.record;
    }
}

void note(const Attempt& attempt, Cell& cell, const Fiber& now) {
    require_ordered(attempt, cell.write, Access::write, now);
    if (attempt.access == Access::read) {
        for (const Record r : cell.atomics) require_ordered(attempt, r, Access::atomic, now);
        insert(cell.reads, now);
        return;
    }
    for (const Record r : cell.reads) require_ordered(attempt, r, Access::read, now);
    if (attempt.access == Access::write) {
        for (const Record r : cell.atomics) require_ordered(attempt, r, Access::atomic, now);
        cell = {now.record, {}, {}};  // whoever is ordered behind it is so behind all the others
    } else {
        insert(cell.atomics, now);
    }
}

void note_word(const Attempt& attempt, Cell& cell, std::uint8_t nibble, const Fiber& now) {
    if (nibble != 0xF && !is_split(cell)) split(cell);
    if (!is_split(cell)) {
        note(attempt, cell, now);
        return;
    }
    SplitCells& bytes = split_of(cell);
    for (unsigned i = 0; i < 4; ++i)
        if ((nibble >> i & 1) != 0) note(attempt, bytes[i], now);
    if (nibble == 0xF && attempt.access == Access::write) {
        release_split(cell);
        cell = {now.record, {}, {}};
    }
}

/// Program text and constants. A kernel may read them: the compiler puts literals there.
bool is_constant(const volatile void* address, std::size_t bytes) {
    struct Range {
        std::uintptr_t begin;
        std::uintptr_t end;
    };
    const AsHost scope;
    static const std::vector<Range> ranges = [] {
        std::vector<Range> found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, std::size_t, void* to) {
                for (int i = 0; i < info->dlpi_phnum; ++i) {
                    const auto& header = info->dlpi_phdr[i];
                    if (header.p_type == PT_LOAD && (header.p_flags & PF_W) == 0)
                        static_cast<std::vector<Range>*>(to)->push_back(
                            {info->dlpi_addr + header.p_vaddr,
                             info->dlpi_addr + header.p_vaddr + header.p_memsz});
                }
                return 1;  // only the first object: the program
            },
            &found);
        return found;
    }();
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    return std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
        return begin >= range.begin && begin + bytes <= range.end;
    });
}

bool inside(const volatile void* address, std::size_t bytes, const void* begin, const void* end) {
    const auto first = reinterpret_cast<std::uintptr_t>(address);
    return first >= reinterpret_cast<std::uintptr_t>(begin) &&
           first + bytes <= reinterpret_cast<std::uintptr_t>(end);
}

void check_outside(const Attempt& attempt, const Fiber& now) {
    if (inside(attempt.address, attempt.bytes, now.stack_low, now.stack_high)) return;
    const auto* parameters = static_cast<const char*>(launch_now.parameters);
    if (attempt.access == Access::read && (inside(attempt.address, attempt.bytes, parameters,
                                                  parameters + launch_now.parameter_bytes) ||
                                           is_constant(attempt.address, attempt.bytes)))
        return;
    fail_at(attempt.code, [&] { return "out of bounds: " + attempt.text(); });
}

}  // namespace

void mark_allocated(std::size_t offset, std::size_t bytes) {
    const std::size_t words = bytes / 4;
    __real_memset(arena.state + offset / 4, 0xF0, words);
    if (bytes % 4 != 0)
        arena.state[offset / 4 + words] = static_cast<std::uint8_t>(((1U << bytes % 4) - 1) << 4);
}

void mark_unallocated(std::size_t offset, std::size_t bytes) {
    const std::size_t begin = offset / 4;
    const std::size_t end = (offset + bytes + 3) / 4;
    zero_pages(arena.state + begin, end - begin);
    if (split_cells.size() > free_splits.size())
        std::for_each(arena.cells + begin, arena.cells + end, release_split);
    zero_pages(arena.cells + begin, (end - begin) * sizeof(Cell));
}

void check_access(const volatile void* address, std::size_t bytes, Access access,
                  const void* code) {
    const Attempt attempt{address, bytes, access, code};
    const std::size_t offset = arena_offset(address);
    if (current == nullptr) {
        if (offset < arena.bytes)
            fail_at(code, [&] { return "host code touches device memory: " + attempt.text(); });
        return;
    }
    const Fiber& now = *current;
    if (bytes == 0) return;
    if (offset >= arena.bytes || bytes > arena.bytes - offset) {
        check_outside(attempt, now);
        return;
    }
    const std::size_t end = offset + bytes;
    const auto each_word = [&](auto visit) {
        for (std::size_t at = offset; at < end;) {
            const std::size_t first = at % 4;
            const std::size_t n = std::min<std::size_t>(4 - first, end - at);
            visit(at / 4, static_cast<std::uint8_t>(((1U << n) - 1) << first));
            at += n;
        }
    };
    each_word([&](std::size_t word, std::uint8_t nibble) {
        if (((arena.state[word] >> 4) & nibble) != nibble)
            fail_at(code, [&] { return "out of bounds: " + attempt.text(); });
    });
    each_word([&](std::size_t word, std::uint8_t nibble) {
        if (access == Access::read || access == Access::atomic) {
            if ((arena.state[word] & nibble) != nibble)
                fail_at(code, [&] { return "uninitialised: " + attempt.text(); });
        } else {
            arena.state[word] |= nibble;
        }
        note_word(attempt, arena.cells[word], nibble, now);
    });
}

}  // namespace emu
