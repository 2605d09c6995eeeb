#include "backend/cuda/runtime.hpp"

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <tuple>

#include "backend/cuda/fill_rows.hpp"
#include "clt/base/error.hpp"

namespace clt::cuda {
namespace {

void check(cudaError_t code, const char* call) {
    if (code != cudaSuccess) library_error(call, code, cudaGetErrorString(code));
}
void check(cublasStatus_t code, const char* call) {
    if (code != CUBLAS_STATUS_SUCCESS) library_error(call, code, cublasGetStatusString(code));
}

// While an exception unwinds, this device may wait in a collective for ranks that will not come,
// and every call that frees something would wait for the device. The process is about to end: its
// words come first.
bool may_wait() {
    return std::uncaught_exceptions() == 0;
}

}  // namespace

// ---- devices

Devices devices() {
    Devices found;
    const cudaError_t code = cudaGetDeviceCount(&found.count);
    if (code == cudaSuccess && found.count > 0) return found;
    static_cast<void>(cudaGetLastError());
    return {0, cudaGetErrorString(code == cudaSuccess ? cudaErrorNoDevice : code)};
}

void use_device(int device) {
    check(cudaSetDevice(device), "cudaSetDevice");
}

DeviceLimits device_limits() {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    DeviceLimits limits;
    limits.name = properties.name;
    std::memcpy(limits.uuid.data(), properties.uuid.bytes, limits.uuid.size());
    limits.multiprocessors = properties.multiProcessorCount;
    limits.l2_bytes = properties.l2CacheSize;
    return limits;
}

MemoryInfo memory_info() {
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    return {static_cast<Index>(free_bytes), static_cast<Index>(total_bytes)};
}

// ---- memory

void* allocate_device(std::size_t bytes) {
    void* pointer = nullptr;
    const cudaError_t code = cudaMalloc(&pointer, bytes);
    if (code == cudaErrorMemoryAllocation) {
        static_cast<void>(cudaGetLastError());  // else the next launch would report it
        return nullptr;
    }
    check(code, "cudaMalloc");
    return pointer;
}

void free_device(void* pointer) noexcept {
    if (may_wait()) cudaFree(pointer);
}

void* allocate_pinned(std::size_t bytes) {
    void* pointer = nullptr;
    const cudaError_t code = cudaMallocHost(&pointer, bytes);
    if (code == cudaErrorMemoryAllocation) {
        static_cast<void>(cudaGetLastError());
        return nullptr;
    }
    check(code, "cudaMallocHost");
    return pointer;
}

void free_pinned(void* pointer) noexcept {
    if (may_wait()) cudaFreeHost(pointer);
}

void register_host(const void* host, std::size_t bytes) {
    const cudaError_t code =
        cudaHostRegister(const_cast<void*>(host), bytes, cudaHostRegisterDefault);
    if (code != cudaSuccess) static_cast<void>(cudaGetLastError());
    check(code, "cudaHostRegister");
}

void unregister_host(const void* host) noexcept {
    if (may_wait()) cudaHostUnregister(const_cast<void*>(host));
}

// ---- streams and events

StreamHandle create_stream() {
    StreamHandle stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return stream;
}

void destroy_stream(StreamHandle stream) noexcept {
    if (may_wait()) cudaStreamDestroy(stream);
}

void synchronize(StreamHandle stream) {
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

EventHandle create_event() {
    EventHandle event = nullptr;
    check(cudaEventCreate(&event), "cudaEventCreate");
    return event;
}

void destroy_event(EventHandle event) noexcept {
    if (may_wait()) cudaEventDestroy(event);
}

void record(EventHandle event, StreamHandle stream) {
    check(cudaEventRecord(event, stream), "cudaEventRecord");
}

void synchronize(EventHandle event) {
    check(cudaEventSynchronize(event), "cudaEventSynchronize");
}

void wait(StreamHandle stream, EventHandle event) {
    check(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
}

double seconds_between(EventHandle first, EventHandle last) {
    synchronize(first);
    synchronize(last);
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, first, last), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) * 1e-3;
}

// ---- kernels

void check_launch(const char* kernel) {
    check(cudaGetLastError(), kernel);
}

// ---- queued copies

void copy_to_device(const void* host, void* device, std::size_t bytes, StreamHandle stream) {
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
}

void copy_to_host(const void* device, void* host, std::size_t bytes, StreamHandle stream) {
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
}

void copy_on_device(const void* from, void* to, std::size_t bytes, StreamHandle stream) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
}

void zero_device(void* device, std::size_t bytes, StreamHandle stream) {
    check(cudaMemsetAsync(device, 0, bytes, stream), "cudaMemsetAsync");
}

// ---- products

namespace {

// NVIDIA's advice for Hopper.
constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

/// A cuBLASLt descriptor and its end.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
class Descriptor {
  public:
    Descriptor() = default;
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (handle_ != nullptr) destroy(handle_);
    }
    Handle* put() { return &handle_; }
    operator Handle() const { return handle_; }

  private:
    Handle handle_ = nullptr;
};
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

/// An encoder product of one shape, ready to run.
struct EncoderPlan {
    Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> product;
    Layout x, weight, pre;
    cublasLtMatmulAlgo_t algorithm{};
};

/// Precision, tile, tokens, width, strides and alignments.
using EncoderKey =
    std::tuple<Precision, Index, Index, Index, Index, Index, unsigned, unsigned, unsigned>;

/// In bytes, at most the 256 of an allocation's start.
unsigned alignment_of(const void* pointer) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    return static_cast<unsigned>(std::min<std::uintptr_t>(address & (~address + 1), 256));
}

}  // namespace

struct BlasHandles {
    explicit BlasHandles(StreamHandle work) : stream(work) {
        check(cublasCreate(&blas), "cublasCreate");
        check(cublasLtCreate(&lt), "cublasLtCreate");
        check(cudaMalloc(&workspace, workspace_bytes), "cudaMalloc");
        check(cublasSetStream(blas, stream), "cublasSetStream");
        check(cublasSetWorkspace(blas, workspace, workspace_bytes), "cublasSetWorkspace");
    }
    BlasHandles(const BlasHandles&) = delete;
    BlasHandles& operator=(const BlasHandles&) = delete;
    ~BlasHandles() {
        if (!may_wait()) return;
        plans.clear();
        cublasLtDestroy(lt);
        cublasDestroy(blas);
        cudaFree(workspace);
    }

    StreamHandle stream;
    cublasHandle_t blas = nullptr;
    cublasLtHandle_t lt = nullptr;
    void* workspace = nullptr;  // shared: products run one after the other
    std::map<EncoderKey, EncoderPlan> plans;
};

std::shared_ptr<BlasHandles> create_blas(StreamHandle stream) {
    return std::make_shared<BlasHandles>(stream);
}

namespace {

cublasComputeType_t compute_type(Precision precision) {
    return precision == Precision::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

template <class T>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, T value) {
    check(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(value)),
          "cublasLtMatmulDescSetAttribute");
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         T value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
          "cublasLtMatmulPreferenceSetAttribute");
}
void make(Layout& layout, cudaDataType type, Index rows, Index cols, Index leading) {
    check(cublasLtMatrixLayoutCreate(layout.put(), type, static_cast<std::uint64_t>(rows),
                                     static_cast<std::uint64_t>(cols), leading),
          "cublasLtMatrixLayoutCreate");
}

/// Column-major, as cuBLAS counts: pre^T[B, T] += (x^T)^T[B, d] weight^T[d, T].
void make(EncoderPlan& plan, const EncoderProduct& p, cublasLtHandle_t lt) {
    const cudaDataType type = p.precision == Precision::bfloat16 ? CUDA_R_16BF : CUDA_R_32F;
    check(cublasLtMatmulDescCreate(plan.product.put(), compute_type(p.precision), CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    set(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    make(plan.x, type, p.width, p.tokens, p.x_stride);
    make(plan.weight, type, p.width, p.tile, p.weight_stride);
    make(plan.pre, CUDA_R_32F, p.tokens, p.tile, p.tokens);

    Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference;
    check(cublasLtMatmulPreferenceCreate(preference.put()), "cublasLtMatmulPreferenceCreate");
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.x));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.weight));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.pre));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.pre));
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    check(cublasLtMatmulAlgoGetHeuristic(lt, plan.product, plan.x, plan.weight, plan.pre, plan.pre,
                                         preference, 1, &best, &found),
          "cublasLtMatmulAlgoGetHeuristic");
    if (found == 0)
        library_error(
            "cublasLtMatmulAlgoGetHeuristic", 0,
            fmt::format("no algorithm for T = {}, B = {}, d = {}", p.tile, p.tokens, p.width));
    plan.algorithm = best.algo;
}

}  // namespace

// Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T on the same memory.
void gemm(BlasHandles& blas, const Gemm& p) {
    const auto op = [](bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const auto leading = [](Index stride) { return std::max<Index>(stride, 1); };
    check(cublasGemmEx_64(blas.blas, op(p.transpose_b), op(p.transpose_a), p.n, p.m, p.k, &p.alpha,
                          p.b, CUDA_R_32F, leading(p.b_stride), p.a, CUDA_R_32F,
                          leading(p.a_stride), &p.beta, p.c, CUDA_R_32F, leading(p.c_stride),
                          compute_type(p.precision), CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx_64");
}

// A feature is a row of pre, so its bias is one for a column of pre^T. cuBLASLt's bias epilogue
// adds a vector along column-major rows only, and a row-order D with that epilogue is refused
// (CUBLAS_STATUS_NOT_SUPPORTED). So the bias is written first and the product added to it: a tile
// stays in the L2 (encode_tile()), and the main loop hides the reads.
void encoder_product(BlasHandles& blas, const EncoderProduct& p) {
    fill_rows(p.bias, p.tile, p.tokens, p.pre, blas.stream);
    const EncoderKey key{p.precision,
                         p.tile,
                         p.tokens,
                         p.width,
                         p.weight_stride,
                         p.x_stride,
                         alignment_of(p.weight),
                         alignment_of(p.x),
                         alignment_of(p.pre)};
    auto plan = blas.plans.find(key);
    if (plan == blas.plans.end()) {
        plan = blas.plans.try_emplace(key).first;
        try {
            make(plan->second, p, blas.lt);
        } catch (...) {
            blas.plans.erase(plan);
            throw;
        }
    }
    const EncoderPlan& ready = plan->second;
    const float one = 1;
    check(cublasLtMatmul(blas.lt, ready.product, &one, p.x, ready.x, p.weight, ready.weight, &one,
                         p.pre, ready.pre, p.pre, ready.pre, &ready.algorithm, blas.workspace,
                         workspace_bytes, blas.stream),
          "cublasLtMatmul");
}

// ---- NCCL

struct NcclCommunicator {
    ncclComm_t handle = nullptr;
    int ranks = 0;
    int rank = 0;

    NcclCommunicator() = default;
    NcclCommunicator(const NcclCommunicator&) = delete;
    NcclCommunicator& operator=(const NcclCommunicator&) = delete;
    ~NcclCommunicator() {
        if (handle != nullptr && may_wait()) ncclCommDestroy(handle);
    }
};

namespace {

void check(ncclResult_t code, const char* call, ncclComm_t communicator = nullptr) {
    if (code == ncclSuccess) return;
    const char* more = ncclGetLastError(communicator);
    library_error(call, code,
                  fmt::format("{} ({})", ncclGetErrorString(code), more != nullptr ? more : ""));
}

/// Also what failed in the background since the last call.
void check(ncclResult_t code, const char* call, const NcclCommunicator& nccl) {
    check(code, call, nccl.handle);
    ncclResult_t earlier = ncclSuccess;
    check(ncclCommGetAsyncError(nccl.handle, &earlier), "ncclCommGetAsyncError", nccl.handle);
    check(earlier, "NCCL, before this call,", nccl.handle);
}

bool all_equal(const Index* counts, int ranks) {
    return std::all_of(counts, counts + ranks, [&](Index n) { return n == counts[0]; });
}

std::size_t size(Index n) {
    return static_cast<std::size_t>(n);
}

}  // namespace

NcclId make_nccl_id() {
    ncclUniqueId id;
    check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    NcclId copy;
    static_assert(sizeof(copy.bytes) == sizeof(id.internal));
    std::memcpy(copy.bytes, id.internal, sizeof(copy.bytes));
    return copy;
}

std::shared_ptr<NcclCommunicator> create_nccl(const NcclId& id, int ranks, int rank) {
    ncclUniqueId copy;
    std::memcpy(copy.internal, id.bytes, sizeof(id.bytes));
    auto nccl = std::make_shared<NcclCommunicator>();
    nccl->ranks = ranks;
    nccl->rank = rank;
    check(ncclCommInitRank(&nccl->handle, ranks, copy, rank), "ncclCommInitRank");
    return nccl;
}

void nccl_all_reduce_sum(NcclCommunicator& nccl, void* values, Index count, NumberType type,
                         StreamHandle stream) {
    const ncclDataType_t types[] = {ncclFloat32, ncclFloat64, ncclInt64};
    check(ncclAllReduce(values, values, size(count), types[static_cast<int>(type)], ncclSum,
                        nccl.handle, stream),
          "ncclAllReduce", nccl);
}

void nccl_reduce_scatter_sum(NcclCommunicator& nccl, const float* in, float* out,
                             const Index* counts, StreamHandle stream) {
    if (all_equal(counts, nccl.ranks)) {
        check(
            ncclReduceScatter(in, out, size(counts[0]), ncclFloat32, ncclSum, nccl.handle, stream),
            "ncclReduceScatter", nccl);
        return;
    }
    check(ncclGroupStart(), "ncclGroupStart");
    for (int r = 0; r < nccl.ranks; in += counts[r], ++r)
        if (counts[r] > 0)
            check(
                ncclReduce(in, out, size(counts[r]), ncclFloat32, ncclSum, r, nccl.handle, stream),
                "ncclReduce", nccl.handle);
    check(ncclGroupEnd(), "ncclGroupEnd", nccl);
}

void nccl_all_gather(NcclCommunicator& nccl, const void* in, void* out, const Index* byte_counts,
                     StreamHandle stream) {
    if (all_equal(byte_counts, nccl.ranks)) {
        check(ncclAllGather(in, out, size(byte_counts[0]), ncclInt8, nccl.handle, stream),
              "ncclAllGather", nccl);
        return;
    }
    auto* to = static_cast<std::byte*>(out);
    check(ncclGroupStart(), "ncclGroupStart");
    for (int r = 0; r < nccl.ranks; to += byte_counts[r], ++r)
        if (byte_counts[r] > 0)
            check(ncclBroadcast(r == nccl.rank ? in : to, to, size(byte_counts[r]), ncclInt8, r,
                                nccl.handle, stream),
                  "ncclBroadcast", nccl.handle);
    check(ncclGroupEnd(), "ncclGroupEnd", nccl);
}

}  // namespace clt::cuda
