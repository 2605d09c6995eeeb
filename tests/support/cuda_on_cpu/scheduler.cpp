// Launches: a fiber a thread, blocks one after another. A fiber runs until it waits for others or
// ends; barriers are judged when nobody can run any more.
#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <string_view>
#include <vector>

#include "support/cuda_on_cpu/internals.hpp"

namespace emu {

constinit thread_local Fiber* current = nullptr;
Launch launch_now;

namespace {

constexpr unsigned max_threads = 1024;
constexpr std::size_t stack_bytes = std::size_t{64} << 10;
constexpr std::size_t guard_bytes = 4096;
constexpr std::size_t max_shared_bytes = std::size_t{48} << 10;  // CUDA's for __shared__
constexpr std::uint64_t max_epoch = 0xFFFFFFF0U;                 // below split_tag

Fiber host;  // where a launch was called
std::array<Fiber, max_threads> fibers;
unsigned thread_count = 0;
unsigned waiting_at_block = 0;
unsigned exited = 0;
std::uint64_t epoch = 0;
std::uint64_t order_seed = 0;
std::uint64_t random_state = 0;
std::string error;
void (*thread_body)(const void*) = nullptr;

/// Fibers that can run, each at most once.
struct Ready {
    std::array<std::uint16_t, max_threads> ring;
    unsigned head = 0;
    unsigned count = 0;

    std::uint16_t& at(unsigned i) { return ring[(head + i) % max_threads]; }
    void push(const Fiber& fiber) { at(count++) = static_cast<std::uint16_t>(fiber.thread); }
    Fiber& pop() {
        if (order_seed != 0)
            std::swap(at(0), at(static_cast<unsigned>(next_random(random_state) % count)));
        Fiber& next = fibers[at(0)];
        head = (head + 1) % max_threads;
        --count;
        return next;
    }
};
Ready ready;

struct Warp {
    std::array<std::array<std::uint32_t, 32>, 32> clocks;  // [lane][what it knows of lane]
    unsigned waiting;                                      // lanes at a warp operation
    unsigned exited;                                       // or never there
    bool joined;                                           // clocks differ from their beginning
};
std::array<Warp, max_threads / 32> warps;

struct SharedArray {
    const SharedSite* site;
    std::size_t offset;
};
std::array<SharedArray, 64> shared_arrays;
std::size_t shared_array_count = 0;
std::size_t shared_end = 0;  // of the window in use
std::size_t shared_bytes = 0;

/// The first epoch of each block of this launch, in the order they ran.
struct BlockBegin {
    std::uint64_t epoch;
    uint3 index;
};
std::vector<BlockBegin> block_begins;

std::string triple(uint3 v) {
    return fmt::format("({}, {}, {})", v.x, v.y, v.z);
}

uint3 index_of(std::uint64_t linear, dim3 extent) {
    return {static_cast<unsigned>(linear % extent.x),
            static_cast<unsigned>(linear / extent.x % extent.y),
            static_cast<unsigned>(linear / extent.x / extent.y)};
}

std::string place_of(const Fiber& fiber) {
    const std::string_view file = fiber.file;
    return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), fiber.line);
}

std::string name_of(BlockOperation operation) {
    static constexpr const char* names[] = {"__syncthreads", "__syncthreads_count",
                                            "__syncthreads_and", "__syncthreads_or"};
    return names[static_cast<int>(operation)];
}

std::string name_of(WarpOperation operation) {
    static constexpr const char* names[] = {
        "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
        "__shfl_xor_sync",   "__ballot_sync",     "__any_sync",        "__all_sync",
        "__match_any_sync",  "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
        "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",
        "__reduce_xor_sync"};
    return names[static_cast<int>(operation)];
}

std::string what_it_does(const Fiber& fiber) {
    switch (fiber.waiting) {
        case Waiting::exited:
            return "has exited";
        case Waiting::block:
            return fmt::format("waits at {} ({})",
                               name_of(static_cast<BlockOperation>(fiber.operation)),
                               place_of(fiber));
        case Waiting::warp:
            return fmt::format("waits at {} with mask {:#010x} ({})",
                               name_of(static_cast<WarpOperation>(fiber.operation)), fiber.mask,
                               place_of(fiber));
        case Waiting::no:
            break;
    }
    return "runs";
}

std::string thread_text(const Fiber& fiber) {
    return "thread " + triple(fiber.index);
}

bool same_place(const Fiber& a, const Fiber& b) {
    return a.waiting == b.waiting && a.operation == b.operation && a.line == b.line &&
           (a.file == b.file || std::string_view(a.file) == b.file);
}

void map_stacks() {
    if (fibers[0].stack_low != nullptr) return;
    constexpr std::size_t stride = stack_bytes + guard_bytes;
    void* p = mmap(nullptr, max_threads * stride, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("the emulator cannot map its stacks");
    for (unsigned i = 0; i < max_threads; ++i) {
        char* low = static_cast<char*>(p) + i * stride;
        mprotect(low, guard_bytes, PROT_NONE);
        fibers[i].stack_low = low + guard_bytes;
        // Tops at different cache sets: the fibers take turns at the same depth.
        fibers[i].stack_high = low + stride - i % 32 * 128;
        fibers[i].thread = i;
    }
}

void switch_to(Fiber& next) {
    Fiber* self = current == nullptr ? &host : current;
    if (self == &next) return;
    current = &next == &host ? nullptr : &next;
    const auto from = boost::context::detail::jump_fcontext(next.context, self);
    static_cast<Fiber*>(from.data)->context = from.fctx;
}

/// Gives the turn to whoever can run; the launch's caller when nobody can.
void yield() {
    switch_to(ready.count > 0 ? ready.pop() : host);
}

void fiber_entry(boost::context::detail::transfer_t from) {
    static_cast<Fiber*>(from.data)->context = from.fctx;
    thread_body(launch_now.parameters);
    current->waiting = Waiting::exited;
    warps[current->thread / 32].exited |= 1U << current->thread % 32;
    ++exited;
    yield();
}

void reset_warp(Warp& warp) {
    if (!warp.joined) return;
    for (unsigned i = 0; i < 32; ++i) {
        warp.clocks[i].fill(0);
        warp.clocks[i][i] = 1;
    }
    warp.joined = false;
}

/// All threads of the block are ordered behind what was before, with clocks at their beginning.
void begin_epoch() {
    ++epoch;
    for (unsigned w = 0; w < (thread_count + 31) / 32; ++w) reset_warp(warps[w]);
    for (unsigned i = 0; i < thread_count; ++i) {
        fibers[i].record = make_record(epoch, i, 1);
        fibers[i].waiting = Waiting::no;
        ready.push(fibers[i]);
    }
}

void clear_shared() {
    if (shared_end > 0) mark_unallocated(0, shared_end);
    shared_end = shared_bytes = shared_array_count = 0;
}

[[noreturn]] void throw_error(const std::string& what) {
    throw Error(
        fmt::format("{}, block {}: {}", launch_now.kernel, triple(launch_now.block_index), what));
}

/// Nobody can run and somebody waits: says who for what.
[[noreturn]] void throw_deadlock() {
    const auto begin = fibers.begin();
    const auto end = begin + thread_count;
    const auto at_block =
        std::find_if(begin, end, [](const Fiber& f) { return f.waiting == Waiting::block; });
    if (at_block != end) {
        const auto other =
            std::find_if(begin, end, [&](const Fiber& f) { return !same_place(f, *at_block); });
        throw_error(fmt::format("divergent barrier: {} {}, {} {}", thread_text(*at_block),
                                what_it_does(*at_block), thread_text(*other),
                                what_it_does(*other)));
    }
    const auto at_warp =
        std::find_if(begin, end, [](const Fiber& f) { return f.waiting == Waiting::warp; });
    const auto absent = std::find_if(begin + at_warp->thread / 32 * 32, end, [&](const Fiber& f) {
        return (at_warp->mask >> f.thread % 32 & 1) != 0 &&
               !(same_place(f, *at_warp) && f.mask == at_warp->mask);
    });
    throw_error(fmt::format("divergent warp: {} {}, {} {}", thread_text(*at_warp),
                            what_it_does(*at_warp), thread_text(*absent), what_it_does(*absent)));
}

void run_block() {
    if (epoch >= max_epoch) throw Error("too many blocks for the emulator");
    ready.count = 0;
    waiting_at_block = exited = 0;
    error.clear();
    for (unsigned w = 0; w < (thread_count + 31) / 32; ++w) {
        warps[w].joined = true;
        warps[w].waiting = 0;
        const unsigned lanes = std::min(32U, thread_count - w * 32);
        warps[w].exited = lanes == 32 ? 0 : ~((1U << lanes) - 1);
    }
    for (unsigned i = 0; i < thread_count; ++i) {
        Fiber& fiber = fibers[i];
        fiber.index = index_of(i, launch_now.block);
        fiber.context = boost::context::detail::make_fcontext(
            fiber.stack_high, static_cast<std::size_t>(fiber.stack_high - fiber.stack_low),
            fiber_entry);
    }
    begin_epoch();
    launch_now.block_floor = epoch << 32;
    block_begins.push_back({epoch, launch_now.block_index});
    yield();
    clear_shared();
    if (!error.empty()) throw Error(std::exchange(error, {}));
    if (exited < thread_count) throw_deadlock();
}

void require_configuration(const char* kernel, dim3 grid, dim3 block) {
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    if (threads < 1 || threads > max_threads || block.x > 1024 || block.y > 1024 || block.z > 64 ||
        grid.x > 0x7FFFFFFFU || grid.y > 0xFFFFU || grid.z > 0xFFFFU)
        throw Error(fmt::format("{}: invalid configuration: grid ({}, {}, {}), block ({}, {}, {})",
                                kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z));
}

/// Completes a warp operation of the lanes of `mask`: results, and everybody knows what anybody
/// did.
void complete(WarpOperation operation, unsigned mask, Fiber* lanes, Warp& warp);

}  // namespace

bool ordered(Record earlier, const Fiber& now) {
    if (earlier < launch_now.launch_floor) return true;
    if (earlier < launch_now.block_floor) return false;  // blocks are never ordered
    if (epoch_of(earlier) != epoch) return true;
    const unsigned thread = thread_of(earlier);
    if (thread == now.thread) return true;
    if (thread / 32 != now.thread / 32) return false;
    return warps[thread / 32].clocks[now.thread % 32][thread % 32] >= clock_of(earlier);
}

std::string describe(Record record) {
    const auto next =
        std::upper_bound(block_begins.begin(), block_begins.end(), epoch_of(record),
                         [](std::uint64_t e, const BlockBegin& b) { return e < b.epoch; });
    return fmt::format("block {}, thread {}", triple(std::prev(next)->index),
                       triple(index_of(thread_of(record), launch_now.block)));
}

std::string describe_code(const void* code) {
    Dl_info info;
    if (dladdr(code, &info) == 0) return {};
    const std::string_view file = info.dli_fname;
    return fmt::format(" (addr2line -Cfie {} {:#x})", file.substr(file.rfind('/') + 1),
                       reinterpret_cast<std::uintptr_t>(code) -
                           reinterpret_cast<std::uintptr_t>(info.dli_fbase) - 1);
}

std::string describe_shared(std::size_t offset) {
    const auto end = shared_arrays.begin() + static_cast<std::ptrdiff_t>(shared_array_count);
    const auto next = std::find_if(shared_arrays.begin(), end,
                                   [&](const SharedArray& array) { return array.offset > offset; });
    if (next == shared_arrays.begin()) return "shared memory of no array";
    const auto& [site, begin] = *std::prev(next);
    const std::string name = fmt::format("shared array {} ({} bytes)", site->name, site->bytes);
    if (offset < begin + site->bytes) return fmt::format("byte {} of {}", offset - begin, name);
    return fmt::format("{} bytes behind the end of {}", offset - begin - site->bytes, name);
}

void leave(const Fiber* who, const std::string& what) {
    if (who == nullptr) throw Error(what);
    error = fmt::format("{}, block {}, {}: {}", launch_now.kernel, triple(launch_now.block_index),
                        thread_text(*who), what);
    boost::context::detail::jump_fcontext(host.context, &host);
    __builtin_unreachable();
}

void set_order(std::uint64_t seed) {
    order_seed = seed;
}

uint3 thread_index() {
    return current->index;
}
uint3 block_index() {
    return launch_now.block_index;
}
dim3 block_extent() {
    return launch_now.block;
}
dim3 grid_extent() {
    return launch_now.grid;
}

void* shared_array(const SharedSite* site) {
    for (std::size_t i = 0; i < shared_array_count; ++i)
        if (shared_arrays[i].site == site) return arena.base + shared_arrays[i].offset;
    constexpr std::size_t red_zone = 256;
    const std::size_t offset = (shared_end + 255) / 256 * 256 + red_zone;
    shared_bytes += (site->bytes + 15) / 16 * 16;
    if (shared_bytes > max_shared_bytes || shared_array_count == shared_arrays.size())
        fail([&] {
            return fmt::format("shared memory: {} bytes with {}, more than {}", shared_bytes,
                               site->name, max_shared_bytes);
        });
    shared_arrays[shared_array_count++] = {site, offset};
    shared_end = offset + site->bytes;
    mark_allocated(offset, site->bytes);
    __real_memset(arena.base + offset, 0xFF, site->bytes);
    return arena.base + offset;
}

void trap(const char* file, int line) {
    current->file = file;
    current->line = line;
    const Fiber& self = *current;
    fail([&] { return fmt::format("__trap ({})", place_of(self)); });
}

int block_operation(BlockOperation operation, int predicate, const char* file, int line) {
    Fiber& self = *current;
    self.waiting = Waiting::block;
    self.operation = static_cast<int>(operation);
    self.file = file;
    self.line = line;
    self.value = predicate != 0;
    if (++waiting_at_block == thread_count) {
        const auto begin = fibers.begin();
        const auto end = begin + thread_count;
        const auto other =
            std::find_if(begin, end, [&](const Fiber& f) { return !same_place(f, self); });
        if (other != end)
            fail([&] {
                return fmt::format("divergent barrier: it {}, {} {}", what_it_does(self),
                                   thread_text(*other), what_it_does(*other));
            });
        const auto count = static_cast<unsigned>(
            std::count_if(begin, end, [](const Fiber& f) { return f.value != 0; }));
        unsigned result = 0;
        if (operation == BlockOperation::count) result = count;
        if (operation == BlockOperation::all) result = count == thread_count;
        if (operation == BlockOperation::any) result = count > 0;
        for (auto f = begin; f != end; ++f) f->value = result;
        waiting_at_block = 0;
        if (epoch >= max_epoch) fail([] { return "too many barriers for the emulator"; });
        begin_epoch();
    }
    yield();
    return static_cast<int>(self.value);
}

std::uint64_t warp_operation(WarpOperation operation, unsigned mask, std::uint64_t value, int lane,
                             int width, const char* file, int line) {
    Fiber& self = *current;
    Warp& warp = warps[self.thread / 32];
    const unsigned own_bit = 1U << self.thread % 32;
    self.waiting = Waiting::warp;
    self.operation = static_cast<int>(operation);
    self.file = file;
    self.line = line;
    self.mask = mask;
    self.value = value;
    self.lane = lane;
    self.width = width;
    if ((mask & own_bit) == 0)
        fail([&] { return fmt::format("it {}, which leaves it out", what_it_does(self)); });
    if ((mask & warp.exited) != 0)
        fail([&] {
            return fmt::format("divergent warp: it {}, but lane {} has exited or never was",
                               what_it_does(self), std::countr_zero(mask & warp.exited));
        });
    if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
        fail([&] { return fmt::format("width {} of a shuffle ({})", width, place_of(self)); });
    warp.waiting |= own_bit;
    if ((warp.waiting & mask) == mask) {
        Fiber* lanes = &fibers[self.thread / 32 * 32];
        bool all_here = true;
        for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
            const Fiber& other = lanes[std::countr_zero(rest)];
            all_here = all_here && other.mask == mask && same_place(other, self);
        }
        if (all_here) complete(operation, mask, lanes, warp);
    }
    yield();
    return self.value;
}

namespace {

/// The lane that this one reads, as PTX's shfl.sync has it.
int source_lane(WarpOperation operation, int lane, int operand, int width) {
    const int first = lane & ~(width - 1);
    const int last = first + width - 1;
    switch (operation) {
        case WarpOperation::shuffle:
            return first | (operand & (width - 1));
        case WarpOperation::shuffle_up:
            return lane - operand >= first ? lane - operand : lane;
        case WarpOperation::shuffle_down:
            return lane + operand <= last ? lane + operand : lane;
        default:
            return (lane ^ operand) <= last ? lane ^ operand : lane;
    }
}

std::uint64_t reduce(WarpOperation operation, std::uint64_t a, std::uint64_t b) {
    const auto x = static_cast<unsigned>(a);
    const auto y = static_cast<unsigned>(b);
    switch (operation) {
        case WarpOperation::reduce_add:
            return x + y;
        case WarpOperation::reduce_min_signed:
            return static_cast<int>(x) < static_cast<int>(y) ? x : y;
        case WarpOperation::reduce_max_signed:
            return static_cast<int>(x) < static_cast<int>(y) ? y : x;
        case WarpOperation::reduce_min:
            return std::min(x, y);
        case WarpOperation::reduce_max:
            return std::max(x, y);
        case WarpOperation::reduce_and:
            return x & y;
        case WarpOperation::reduce_or:
            return x | y;
        default:
            return x ^ y;
    }
}

void complete(WarpOperation operation, unsigned mask, Fiber* lanes, Warp& warp) {
    std::array<std::uint64_t, 32> values;
    std::array<std::uint32_t, 32> known{};
    unsigned ballot = 0;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        const auto l = static_cast<unsigned>(std::countr_zero(rest));
        values[l] = lanes[l].value;
        ballot |= static_cast<unsigned>(lanes[l].value != 0) << l;
        for (unsigned k = 0; k < 32; ++k) known[k] = std::max(known[k], warp.clocks[l][k]);
    }
    const auto first = static_cast<unsigned>(std::countr_zero(mask));
    std::uint64_t reduced = values[first];
    if (operation >= WarpOperation::reduce_add)
        for (unsigned rest = mask & (mask - 1); rest != 0; rest &= rest - 1)
            reduced = reduce(operation, reduced, values[std::countr_zero(rest)]);

    warp.joined = true;
    warp.waiting &= ~mask;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        const auto l = static_cast<unsigned>(std::countr_zero(rest));
        Fiber& fiber = lanes[l];
        switch (operation) {
            case WarpOperation::sync:
                break;
            case WarpOperation::shuffle:
            case WarpOperation::shuffle_up:
            case WarpOperation::shuffle_down:
            case WarpOperation::shuffle_xor: {
                const int from =
                    source_lane(operation, static_cast<int>(l), fiber.lane, fiber.width);
                if (from < 0 || (mask >> from & 1) == 0) {
                    current = &fiber;
                    fail([&] {
                        return fmt::format("{} reads lane {}, which mask {:#010x} leaves out ({})",
                                           name_of(operation), from, mask, place_of(fiber));
                    });
                }
                fiber.value = values[static_cast<unsigned>(from)];
                break;
            }
            case WarpOperation::ballot:
                fiber.value = ballot;
                break;
            case WarpOperation::any:
                fiber.value = ballot != 0;
                break;
            case WarpOperation::all:
                fiber.value = ballot == mask;
                break;
            case WarpOperation::match_any: {
                unsigned same = 0;
                for (unsigned k = 0; k < 32; ++k)
                    if ((mask >> k & 1) != 0 && values[k] == values[l]) same |= 1U << k;
                fiber.value = same;
                break;
            }
            default:
                fiber.value = reduced;
        }
        fiber.waiting = Waiting::no;
        const std::uint32_t own = warp.clocks[l][l] + 1;
        if (own >= 1U << clock_bits) fail([] { return "too many warp barriers for the emulator"; });
        warp.clocks[l] = known;
        warp.clocks[l][l] = own;
        fiber.record = make_record(epoch, fiber.thread, own);
        ready.push(fiber);
    }
}

}  // namespace

void run(const char* kernel, dim3 grid, dim3 block, void (*thread)(const void*),
         const void* parameters, std::size_t bytes) {
    if (current != nullptr) fail([&] { return fmt::format("it launches {}", kernel); });
    const std::lock_guard lock(api_mutex);
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    if (blocks == 0) return;
    require_configuration(kernel, grid, block);
    map_arena();
    map_stacks();
    thread_body = thread;
    thread_count = block.x * block.y * block.z;
    launch_now = {kernel, grid, block, parameters, bytes, (epoch + 1) << 32, 0, {}};
    block_begins.clear();
    random_state = order_seed;
    std::vector<std::uint32_t> order(order_seed == 0 ? 0 : blocks);
    std::iota(order.begin(), order.end(), 0U);
    for (std::size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[next_random(random_state) % i]);
    for (std::uint64_t b = 0; b < blocks; ++b) {
        launch_now.block_index = index_of(order_seed == 0 ? b : order[b], grid);
        run_block();
    }
}

}  // namespace emu
