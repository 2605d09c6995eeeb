// The CUDA runtime, cuBLAS and NCCL as the backend uses them: every function is one call or a few
// of those libraries (runtime.cpp). The tests link stand-ins that run on the CPU instead
// (tests/support/cuda_on_cpu). No CUDA header is needed to include this page. All throw
// LibraryError that names the call, its code and the library's words; pointers are device memory
// unless they say host.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "clt/base/types.hpp"

using StreamHandle = struct CUstream_st*;
using EventHandle = struct CUevent_st*;

namespace clt::cuda {

// ---- devices
struct Devices {
    int count = 0;      // those this process may use
    std::string words;  // why there are none
};
Devices devices();
void use_device(int device);
struct DeviceLimits {
    std::string name;
    std::array<char, 16> uuid{};  // tells devices of a host apart, whatever their numbers
    int multiprocessors = 0;
    Index l2_bytes = 0;
    bool keeps_freed_blocks = true;  // false: every buffer is an allocation of its own
};
DeviceLimits device_limits();
struct MemoryInfo {
    Index free_bytes = 0;
    Index total_bytes = 0;
};
MemoryInfo memory_info();

// ---- memory
void* allocate_device(std::size_t bytes);  // null when there is none
void free_device(void* pointer) noexcept;
void* allocate_pinned(std::size_t bytes);  // host; null when there is none
void free_pinned(void* pointer) noexcept;
void register_host(const void* host, std::size_t bytes);  // pins memory that is there
void unregister_host(const void* host) noexcept;

// ---- streams and events
StreamHandle create_stream();
void destroy_stream(StreamHandle stream) noexcept;
void synchronize(StreamHandle stream);
EventHandle create_event();  // with timing
void destroy_event(EventHandle event) noexcept;
void record(EventHandle event, StreamHandle stream);
void synchronize(EventHandle event);                          // never recorded: returns at once
void wait(StreamHandle stream, EventHandle event);            // later work of the stream waits
double seconds_between(EventHandle first, EventHandle last);  // waits for both

// ---- kernels
/// Throws when the launch before it was refused.
void check_launch(const char* kernel);

// ---- queued copies
void copy_to_device(const void* host, void* device, std::size_t bytes, StreamHandle stream);
void copy_to_host(const void* device, void* host, std::size_t bytes, StreamHandle stream);
void copy_on_device(const void* from, void* to, std::size_t bytes, StreamHandle stream);
void zero_device(void* device, std::size_t bytes, StreamHandle stream);

// ---- products (cuBLAS, cuBLASLt); row-major, no extent is 0 save Gemm's k
struct BlasHandles;
std::shared_ptr<BlasHandles> create_blas(StreamHandle stream);

enum class Precision { float32, tf32, bfloat16 };

/// C[m, n] = alpha op(A)[m, k] op(B)[k, n] + beta C; in float32, or tf32 where allowed.
struct Gemm {
    bool transpose_a = false, transpose_b = false;
    Index m = 0, n = 0, k = 0;
    float alpha = 1, beta = 0;
    const float* a = nullptr;
    Index a_stride = 0;
    const float* b = nullptr;
    Index b_stride = 0;
    float* c = nullptr;
    Index c_stride = 0;
    Precision precision = Precision::float32;  // not bfloat16
};
void gemm(BlasHandles& blas, const Gemm& product);

/// pre[T, B] = weight[T, d] x[B, d]^T + bias[T]; weight and x are floats, or bfloat16 (as uint16)
/// with precision bfloat16; pre is float32, its rows B apart.
struct EncoderProduct {
    Precision precision = Precision::float32;
    Index tile = 0, tokens = 0, width = 0;
    const void* weight = nullptr;
    Index weight_stride = 0;
    const void* x = nullptr;
    Index x_stride = 0;
    const float* bias = nullptr;
    float* pre = nullptr;
};
void encoder_product(BlasHandles& blas, const EncoderProduct& product);

// ---- NCCL
struct NcclId {
    char bytes[128] = {};
};
NcclId make_nccl_id();
struct NcclCommunicator;
/// Collective over the ranks that share the id.
std::shared_ptr<NcclCommunicator> create_nccl(const NcclId& id, int ranks, int rank);
enum class NumberType { float32, float64, int64 };
void nccl_all_reduce_sum(NcclCommunicator& nccl, void* values, Index count, NumberType type,
                         StreamHandle stream);
/// Blocks of different sizes, counts[ranks]; `in` holds all, `out` gets this rank's, summed.
void nccl_reduce_scatter_sum(NcclCommunicator& nccl, const float* in, float* out,
                             const Index* counts, StreamHandle stream);
/// byte_counts[ranks]; `out` gets all blocks in rank order; `in` may lie in it.
void nccl_all_gather(NcclCommunicator& nccl, const void* in, void* out, const Index* byte_counts,
                     StreamHandle stream);

}  // namespace clt::cuda
