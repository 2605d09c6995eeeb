// CUDA's names, as far as our kernels use them: what is not here does not compile under the
// emulator. Fast-math intrinsics and __activemask are left out on purpose.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

/// One array for all threads of a block; its content is undefined when the block begins.
/// The site is a static, so that each instantiation of a template has its own array, as in CUDA.
#define CLT_SHARED(type, name, count)                                              \
    static constexpr ::emu::SharedSite name##_site{#name, sizeof(type) * (count)}; \
    type(&name)[count] = *static_cast<type(*)[count]>(::emu::shared_array(&name##_site))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(4) ushort2 {
    unsigned short x, y;
};
struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};
constexpr float2 make_float2(float x, float y) {
    return {x, y};
}
constexpr float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
constexpr double2 make_double2(double x, double y) {
    return {x, y};
}
constexpr int2 make_int2(int x, int y) {
    return {x, y};
}
constexpr int4 make_int4(int x, int y, int z, int w) {
    return {x, y, z, w};
}
constexpr uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
constexpr ushort2 make_ushort2(unsigned short x, unsigned short y) {
    return {x, y};
}
constexpr ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z,
                               unsigned short w) {
    return {x, y, z, w};
}

namespace emu {

/// Where a shared array is declared.
struct SharedSite {
    const char* name;
    std::size_t bytes;
};
/// The block's array of this site, 16-byte aligned.
void* shared_array(const SharedSite* site);

// const: for the thread that asks, the answer never changes.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_extent();
__attribute__((const)) dim3 grid_extent();

enum class BlockOperation { sync, count, all, any };
/// All threads of the block meet here; the result over their predicates.
int block_operation(BlockOperation operation, int predicate, const char* file, int line);

enum class WarpOperation {
    sync,
    shuffle,
    shuffle_up,
    shuffle_down,
    shuffle_xor,
    ballot,
    any,
    all,
    match_any,
    reduce_add,
    reduce_min_signed,
    reduce_max_signed,
    reduce_min,
    reduce_max,
    reduce_and,
    reduce_or,
    reduce_xor
};
/// The lanes of the mask meet here. lane: the source lane, delta or lane mask of a shuffle.
std::uint64_t warp_operation(WarpOperation operation, unsigned mask, std::uint64_t value, int lane,
                             int width, const char* file, int line);

template <class T>
concept Word = std::is_arithmetic_v<T> &&(sizeof(T) == 4 || sizeof(T) == 8);

template <Word T>
std::uint64_t to_bits(T value) {
    if constexpr (sizeof(T) == 8)
        return std::bit_cast<std::uint64_t>(value);
    else
        return std::bit_cast<std::uint32_t>(value);
}
template <Word T>
T from_bits(std::uint64_t bits) {
    if constexpr (sizeof(T) == 8)
        return std::bit_cast<T>(bits);
    else
        return std::bit_cast<T>(static_cast<std::uint32_t>(bits));
}
template <Word T>
T warp_word(WarpOperation operation, unsigned mask, T value, int lane, int width, const char* file,
            int line) {
    return from_bits<T>(warp_operation(operation, mask, to_bits(value), lane, width, file, line));
}

template <class T, class... Types>
concept OneOf = (std::same_as<T, Types> || ...);

// Out of line in atomics.cpp, which is compiled without the hooks.
template <class T>
T atomic_add(T* address, T value);
template <class T>
T atomic_min(T* address, T value);
template <class T>
T atomic_max(T* address, T value);
template <class T>
T atomic_and(T* address, T value);
template <class T>
T atomic_or(T* address, T value);
template <class T>
T atomic_exchange(T* address, T value);
template <class T>
T atomic_compare_and_swap(T* address, T expected, T value);

[[noreturn]] void trap(const char* file, int line);

/// Runs `thread(parameters)` once a thread of the grid. Throws Error.
void run(const char* kernel, dim3 grid, dim3 block, void (*thread)(const void*),
         const void* parameters, std::size_t bytes);

/// Here, and not in std::tuple, so that -Wconversion sees an Index that becomes an int.
template <class To, class From>
To convert(From value) {
    return value;
}

/// A grid with a zero extent launches nothing. The launch is over when it returns.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            struct CUstream_st*, Arguments... arguments) {
    static_assert((std::is_trivially_copyable_v<Parameters> && ...));
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<Parameters...> parameters;
    };
    const Call call{kernel, {convert<Parameters>(arguments)...}};
    run(
        name, grid, block,
        [](const void* p) {
            const Call& self = *static_cast<const Call*>(p);
            std::apply(self.kernel, self.parameters);
        },
        &call, sizeof call);
}

}  // namespace emu

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_extent())
#define gridDim (::emu::grid_extent())
inline constexpr int warpSize = 32;

// The place of a barrier is its line, not its return address: the compiler may duplicate the call.
#define CLT_EMU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CLT_EMU_PLACE) {
    emu::block_operation(emu::BlockOperation::sync, 0, file, line);
}
inline int __syncthreads_count(int predicate, CLT_EMU_PLACE) {
    return emu::block_operation(emu::BlockOperation::count, predicate, file, line);
}
inline int __syncthreads_and(int predicate, CLT_EMU_PLACE) {
    return emu::block_operation(emu::BlockOperation::all, predicate, file, line);
}
inline int __syncthreads_or(int predicate, CLT_EMU_PLACE) {
    return emu::block_operation(emu::BlockOperation::any, predicate, file, line);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU, CLT_EMU_PLACE) {
    emu::warp_operation(emu::WarpOperation::sync, mask, 0, 0, 32, file, line);
}
template <emu::Word T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::shuffle, mask, value, lane, width, file, line);
}
template <emu::Word T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::shuffle_up, mask, value, static_cast<int>(delta),
                          width, file, line);
}
template <emu::Word T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::shuffle_down, mask, value, static_cast<int>(delta),
                          width, file, line);
}
template <emu::Word T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::shuffle_xor, mask, value, lane_mask, width, file,
                          line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CLT_EMU_PLACE) {
    return static_cast<unsigned>(
        emu::warp_operation(emu::WarpOperation::ballot, mask, predicate != 0, 0, 32, file, line));
}
inline int __any_sync(unsigned mask, int predicate, CLT_EMU_PLACE) {
    return static_cast<int>(
        emu::warp_operation(emu::WarpOperation::any, mask, predicate != 0, 0, 32, file, line));
}
inline int __all_sync(unsigned mask, int predicate, CLT_EMU_PLACE) {
    return static_cast<int>(
        emu::warp_operation(emu::WarpOperation::all, mask, predicate != 0, 0, 32, file, line));
}
template <emu::Word T>
unsigned __match_any_sync(unsigned mask, T value, CLT_EMU_PLACE) {
    return static_cast<unsigned>(emu::warp_operation(emu::WarpOperation::match_any, mask,
                                                     emu::to_bits(value), 0, 32, file, line));
}
template <emu::OneOf<int, unsigned> T>
T __reduce_add_sync(unsigned mask, T value, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::reduce_add, mask, value, 0, 32, file, line);
}
template <emu::OneOf<int, unsigned> T>
T __reduce_min_sync(unsigned mask, T value, CLT_EMU_PLACE) {
    constexpr auto operation = std::is_signed_v<T> ? emu::WarpOperation::reduce_min_signed
                                                   : emu::WarpOperation::reduce_min;
    return emu::warp_word(operation, mask, value, 0, 32, file, line);
}
template <emu::OneOf<int, unsigned> T>
T __reduce_max_sync(unsigned mask, T value, CLT_EMU_PLACE) {
    constexpr auto operation = std::is_signed_v<T> ? emu::WarpOperation::reduce_max_signed
                                                   : emu::WarpOperation::reduce_max;
    return emu::warp_word(operation, mask, value, 0, 32, file, line);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::reduce_and, mask, value, 0, 32, file, line);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::reduce_or, mask, value, 0, 32, file, line);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, CLT_EMU_PLACE) {
    return emu::warp_word(emu::WarpOperation::reduce_xor, mask, value, 0, 32, file, line);
}
/// Which lanes happen to be together is up to the hardware: a kernel that asks is wrong.
unsigned __activemask() = delete;
[[noreturn]] inline void __trap(CLT_EMU_PLACE) {
    emu::trap(file, line);
}
#undef CLT_EMU_PLACE

// Fences order nothing here: they make no access of two threads anything but a race.
inline void __threadfence() {}
inline void __threadfence_block() {}

template <emu::OneOf<int, unsigned, unsigned long long, float, double> T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
    return emu::atomic_add(address, value);
}
template <emu::OneOf<int, unsigned> T>
T atomicSub(T* address, std::type_identity_t<T> value) {
    return emu::atomic_add(address, static_cast<T>(0U - static_cast<unsigned>(value)));
}
template <emu::OneOf<int, unsigned, long long, unsigned long long> T>
T atomicMin(T* address, std::type_identity_t<T> value) {
    return emu::atomic_min(address, value);
}
template <emu::OneOf<int, unsigned, long long, unsigned long long> T>
T atomicMax(T* address, std::type_identity_t<T> value) {
    return emu::atomic_max(address, value);
}
template <emu::OneOf<int, unsigned, unsigned long long> T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
    return emu::atomic_and(address, value);
}
template <emu::OneOf<int, unsigned, unsigned long long> T>
T atomicOr(T* address, std::type_identity_t<T> value) {
    return emu::atomic_or(address, value);
}
template <emu::OneOf<int, unsigned, unsigned long long, float> T>
T atomicExch(T* address, std::type_identity_t<T> value) {
    return emu::atomic_exchange(address, value);
}
template <emu::OneOf<int, unsigned, unsigned long long> T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    return emu::atomic_compare_and_swap(address, expected, value);
}

template <class T>
T __ldg(const T* address) {
    return *address;
}

constexpr int __popc(unsigned x) {
    return std::popcount(x);
}
constexpr int __popcll(unsigned long long x) {
    return std::popcount(x);
}
constexpr int __clz(int x) {
    return std::countl_zero(static_cast<unsigned>(x));
}
constexpr int __clzll(long long x) {
    return std::countl_zero(static_cast<unsigned long long>(x));
}
constexpr int __ffs(int x) {
    return __builtin_ffs(x);
}
constexpr int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
constexpr unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
constexpr float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
constexpr int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
constexpr float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
constexpr long long __double_as_longlong(double x) {
    return std::bit_cast<long long>(x);
}
constexpr double __longlong_as_double(long long x) {
    return std::bit_cast<double>(x);
}
inline float rsqrtf(float x) {
    return 1.0F / std::sqrt(x);
}
template <emu::OneOf<int, unsigned, long, unsigned long, long long, unsigned long long> T>
constexpr T min(T a, T b) {
    return b < a ? b : a;
}
template <emu::OneOf<int, unsigned, long, unsigned long, long long, unsigned long long> T>
constexpr T max(T a, T b) {
    return a < b ? b : a;
}
inline float min(float a, float b) {
    return std::fmin(a, b);
}
inline float max(float a, float b) {
    return std::fmax(a, b);
}
inline double min(double a, double b) {
    return std::fmin(a, b);
}
inline double max(double a, double b) {
    return std::fmax(a, b);
}

/// Storage only: conversions are explicit and there is no arithmetic, so kernels compute in float.
class __nv_bfloat16 {
  public:
    __nv_bfloat16() = default;
    /// Round to nearest even; a NaN becomes 0x7FFF, as on the GPU.
    explicit constexpr __nv_bfloat16(float value) {
        const auto wide = std::bit_cast<std::uint32_t>(value);
        bits_ = (wide & 0x7FFFFFFFU) > 0x7F800000U
                    ? std::uint16_t{0x7FFF}
                    : static_cast<std::uint16_t>((wide + 0x7FFFU + ((wide >> 16) & 1U)) >> 16);
    }
    explicit constexpr operator float() const {
        return std::bit_cast<float>(std::uint32_t{bits_} << 16);
    }

  private:
    std::uint16_t bits_;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
constexpr __nv_bfloat16 __float2bfloat16(float x) {
    return __nv_bfloat16(x);
}
constexpr __nv_bfloat16 __float2bfloat16_rn(float x) {
    return __nv_bfloat16(x);
}
constexpr float __bfloat162float(__nv_bfloat16 x) {
    return static_cast<float>(x);
}
constexpr __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
constexpr __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __floats2bfloat162_rn(v.x, v.y);
}
constexpr float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
constexpr float __low2float(__nv_bfloat162 v) {
    return static_cast<float>(v.x);
}
constexpr float __high2float(__nv_bfloat162 v) {
    return static_cast<float>(v.y);
}
constexpr unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return std::bit_cast<std::uint16_t>(x);
}
constexpr __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
    return std::bit_cast<__nv_bfloat16>(std::uint16_t{x});
}
