// The stand-ins of backend/cuda/runtime.hpp: one device, the emulator's memory, work done at once.
#include "backend/cuda/runtime.hpp"

#include <chrono>
#include <cstdlib>
#include <iterator>
#include <map>
#include <vector>

#include "backend/cuda/fill_rows.hpp"
#include "clt/base/error.hpp"
#include "clt/base/float16.hpp"
#include "support/cuda_on_cpu/emulator.hpp"
#include "support/cuda_on_cpu/runtime.hpp"

struct CUstream_st {};
struct CUevent_st {
    std::chrono::steady_clock::time_point time;
};

namespace clt::test {
namespace {
bool device_present = true;
bool pool = false;
int wait_count = 0;
int event_count = 0;
std::map<const std::byte*, std::size_t> registered;
}  // namespace

void emulate_block_pool(bool keep) {
    pool = keep;
}
void emulate_device(bool present) {
    device_present = present;
}
int waits() {
    return wait_count;
}
int live_events() {
    return event_count;
}
bool is_page_locked(const void* from, std::size_t bytes) {
    const auto* begin = static_cast<const std::byte*>(from);
    const auto after = registered.upper_bound(begin);
    if (after == registered.begin()) return false;
    const auto& [first, size] = *std::prev(after);
    return begin + bytes <= first + size;
}
int page_locked_ranges() {
    return static_cast<int>(registered.size());
}
}  // namespace clt::test

namespace clt::cuda {

Devices devices() {
    if (!test::device_present) return {0, "the emulator has none"};
    return {1, ""};
}
void use_device(int device) {
    CLT_CHECK(device == 0);
}
DeviceLimits device_limits() {
    // Small, so that an encoder's tile is: tests then have several.
    return {.name = "emulator",
            .uuid = {'e', 'm', 'u'},
            .multiprocessors = 2,
            .l2_bytes = Index{1} << 10,
            .keeps_freed_blocks = test::pool};
}
MemoryInfo memory_info() {
    const auto total = static_cast<Index>(emu::memory_limit());
    return {total - static_cast<Index>(emu::bytes_allocated()), total};
}

void* allocate_device(std::size_t bytes) {
    return emu::device_malloc(bytes);
}
void free_device(void* pointer) noexcept {
    emu::device_free(pointer);
}
void* allocate_pinned(std::size_t bytes) {
    return std::malloc(bytes);
}
void free_pinned(void* pointer) noexcept {
    std::free(pointer);
}
void register_host(const void* host, std::size_t bytes) {
    if (!test::registered.emplace(static_cast<const std::byte*>(host), bytes).second)
        library_error("cudaHostRegister", 712, "already registered");
}
void unregister_host(const void* host) noexcept {
    test::registered.erase(static_cast<const std::byte*>(host));
}

StreamHandle create_stream() {
    return new CUstream_st;
}
void destroy_stream(StreamHandle stream) noexcept {
    delete stream;
}
void synchronize(StreamHandle /*stream*/) {
    ++test::wait_count;
}
EventHandle create_event() {
    ++test::event_count;
    return new CUevent_st;
}
void destroy_event(EventHandle event) noexcept {
    --test::event_count;
    delete event;
}
void record(EventHandle event, StreamHandle /*stream*/) {
    event->time = std::chrono::steady_clock::now();
}
void synchronize(EventHandle /*event*/) {
    ++test::wait_count;
}
void wait(StreamHandle /*stream*/, EventHandle /*event*/) {}
double seconds_between(EventHandle first, EventHandle last) {
    return std::chrono::duration<double>(last->time - first->time).count();
}

void copy_to_device(const void* host, void* device, std::size_t bytes, StreamHandle /*stream*/) {
    emu::copy_to_device(device, host, bytes);
}
void copy_to_host(const void* device, void* host, std::size_t bytes, StreamHandle /*stream*/) {
    emu::copy_to_host(host, device, bytes);
}
void copy_on_device(const void* from, void* to, std::size_t bytes, StreamHandle /*stream*/) {
    emu::copy_on_device(to, from, bytes);
}
void zero_device(void* device, std::size_t bytes, StreamHandle /*stream*/) {
    emu::set_on_device(device, 0, bytes);
}

struct BlasHandles {
    StreamHandle stream;
};

std::shared_ptr<BlasHandles> create_blas(StreamHandle stream) {
    return std::make_shared<BlasHandles>(BlasHandles{stream});
}

namespace {

/// rows × cols floats at `from`, `stride` apart, checked and copied; transposed: cols × rows.
std::vector<float> operand(const char* who, const float* from, Index rows, Index cols, Index stride,
                           bool transposed) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (Index i = 0; i < rows; ++i) {
        const float* row = from + i * stride;
        emu::library_reads(who, row, static_cast<std::size_t>(cols) * sizeof(float));
        for (Index j = 0; j < cols; ++j)
            values[static_cast<std::size_t>(transposed ? j * rows + i : i * cols + j)] = row[j];
    }
    return values;
}

/// c[m, n] += alpha a[m, k] b[k, n], dense operands.
void add_product(Index m, Index n, Index k, float alpha, const std::vector<float>& a,
                 const std::vector<float>& b, float* c, Index c_stride) {
    for (Index i = 0; i < m; ++i)
        for (Index p = 0; p < k; ++p) {
            const float factor = alpha * a[static_cast<std::size_t>(i * k + p)];
            const float* from = b.data() + p * n;
            float* to = c + i * c_stride;
            for (Index j = 0; j < n; ++j) to[j] += factor * from[j];
        }
}

}  // namespace

void gemm(BlasHandles& /*blas*/, const Gemm& p) {
    CLT_CHECK(p.m > 0 && p.n > 0 && p.precision != Precision::bfloat16);
    const auto a = p.transpose_a ? operand("gemm, a", p.a, p.k, p.m, p.a_stride, true)
                                 : operand("gemm, a", p.a, p.m, p.k, p.a_stride, false);
    const auto b = p.transpose_b ? operand("gemm, b", p.b, p.n, p.k, p.b_stride, true)
                                 : operand("gemm, b", p.b, p.k, p.n, p.b_stride, false);
    for (Index i = 0; i < p.m; ++i) {
        float* row = p.c + i * p.c_stride;
        const auto bytes = static_cast<std::size_t>(p.n) * sizeof(float);
        if (p.beta != 0) emu::library_reads("gemm, c", row, bytes);
        emu::library_writes("gemm, c", row, bytes);
        for (Index j = 0; j < p.n; ++j) row[j] = p.beta == 0 ? 0 : p.beta * row[j];
    }
    add_product(p.m, p.n, p.k, p.alpha, a, b, p.c, p.c_stride);
}

void encoder_product(BlasHandles& blas, const EncoderProduct& p) {
    CLT_CHECK(p.tile > 0 && p.tokens > 0 && p.width > 0);
    const auto factor = [&](const char* who, const void* from, Index rows, Index stride,
                            bool transposed) {
        if (p.precision != Precision::bfloat16)
            return operand(who, static_cast<const float*>(from), rows, p.width, stride, transposed);
        std::vector<float> values(static_cast<std::size_t>(rows * p.width));
        for (Index i = 0; i < rows; ++i) {
            const auto* row = static_cast<const std::uint16_t*>(from) + i * stride;
            emu::library_reads(who, row, static_cast<std::size_t>(p.width) * 2);
            for (Index j = 0; j < p.width; ++j)
                values[static_cast<std::size_t>(transposed ? j * rows + i : i * p.width + j)] =
                    bfloat16_to_float(row[j]);
        }
        return values;
    };
    const auto weight = factor("encoder product, weight", p.weight, p.tile, p.weight_stride, false);
    const auto x = factor("encoder product, x", p.x, p.tokens, p.x_stride, true);
    fill_rows(p.bias, p.tile, p.tokens, p.pre, blas.stream);
    add_product(p.tile, p.tokens, p.width, 1, weight, x, p.pre, p.tokens);
}

struct NcclCommunicator {};

namespace {
[[noreturn]] void no_nccl(const char* call) {
    library_error(call, 0, "not on the emulator, where ranks share the device");
}
}  // namespace

NcclId make_nccl_id() {
    no_nccl("ncclGetUniqueId");
}
std::shared_ptr<NcclCommunicator> create_nccl(const NcclId& /*id*/, int /*ranks*/, int /*rank*/) {
    no_nccl("ncclCommInitRank");
}
void nccl_all_reduce_sum(NcclCommunicator& /*nccl*/, void* /*values*/, Index /*count*/,
                         NumberType /*type*/, StreamHandle /*stream*/) {
    no_nccl("ncclAllReduce");
}
void nccl_reduce_scatter_sum(NcclCommunicator& /*nccl*/, const float* /*in*/, float* /*out*/,
                             const Index* /*counts*/, StreamHandle /*stream*/) {
    no_nccl("ncclReduceScatter");
}
void nccl_all_gather(NcclCommunicator& /*nccl*/, const void* /*in*/, void* /*out*/,
                     const Index* /*byte_counts*/, StreamHandle /*stream*/) {
    no_nccl("ncclAllGather");
}

}  // namespace clt::cuda
