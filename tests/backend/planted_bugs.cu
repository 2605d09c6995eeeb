#include "backend/cuda/device_code.hpp"

#include <cstring>

#include "planted_bugs.hpp"

namespace clt::test {
namespace {

constexpr unsigned full_mask = 0xFFFFFFFFU;

__device__ inline float warp_sum(float x) {
    for (int d = 16; d > 0; d /= 2) x += __shfl_down_sync(full_mask, x, d);
    return x;
}

template <int threads>
__global__ void __launch_bounds__(threads)
    sum_rows(const float* __restrict__ in, float* out, int n) {
    CLT_SHARED(float, part, threads / 32);
    float x = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) x += __ldg(&in[blockIdx.x * n + i]);
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) {
        x = warp_sum(threadIdx.x < threads / 32 ? part[threadIdx.x] : 0.0F);
        if (threadIdx.x == 0) out[blockIdx.x] = x;
    }
}

__global__ void scan(const int* in, int* out) {
    CLT_SHARED(int, sums, 256);
    const int t = threadIdx.x;
    sums[t] = in[t];
    __syncthreads();
    for (int d = 1; d < 256; d *= 2) {
        const int left = t >= d ? sums[t - d] : 0;
        __syncthreads();
        sums[t] += left;
        __syncthreads();
    }
    out[t] = t > 0 ? sums[t - 1] : 0;
}

__global__ void count_nibbles(const unsigned* in, unsigned* counts, int n) {
    CLT_SHARED(unsigned, local, 16);
    if (threadIdx.x < 16) local[threadIdx.x] = 0;
    __syncthreads();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&local[in[i] & 15U], 1U);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
}

__global__ void rank_matches(const int* in, int* out) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned same = __match_any_sync(full_mask, in[threadIdx.x]);
    out[threadIdx.x] = 100 * __popc(same) + __popc(same & ((1U << lane) - 1U));
}

__global__ void scale(const float4* in, float4* out, int n, float factor) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 v = in[i];
    v.x *= factor;
    v.y *= factor;
    v.z *= factor;
    v.w *= factor;
    out[i] = v;
}

__global__ void to_bfloat16(const float* in, __nv_bfloat16* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i ^ 1] = __float2bfloat16(in[i ^ 1]);
}
__global__ void from_bfloat16(const __nv_bfloat162* in, float2* out, int pairs) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pairs) out[i] = __bfloat1622float2(in[i]);
}

__global__ void all_warp_words(const int* in, long long* out) {
    const int lane = threadIdx.x;
    const int x = in[lane];
    long long sum = __shfl_sync(full_mask, x, lane + 3);
    sum += 10LL * __shfl_up_sync(full_mask, x, 2U, 8);
    sum += 1000LL * __shfl_down_sync(full_mask, x, 5U, 16);
    sum += 100000LL * __shfl_xor_sync(full_mask, x, 9, 16);
    sum += __shfl_sync(full_mask, static_cast<long long>(x) << 33, 1);
    sum += static_cast<long long>(__shfl_xor_sync(full_mask, 0.5 * x, 1));
    sum += __popc(__ballot_sync(full_mask, x % 3 == 0)) * 10000000LL;
    sum += __any_sync(full_mask, x == 7) + 2 * __all_sync(full_mask, x >= 0);
    sum += __reduce_add_sync(full_mask, x) + __reduce_max_sync(full_mask, -x);
    out[lane] = sum;
}

__global__ void use_atomics(const int* in, int* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicMax(&out[0], in[i]);
    int seen = atomicAdd(&out[1], 0);
    for (int expected = -1; seen != expected;) {
        expected = seen;
        seen = atomicCAS(&out[1], expected, expected + in[i]);
    }
}

__global__ void place(int* out) {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
    out[i] = static_cast<int>(i);
}

__global__ void halves_of_a_warp(int* out) {
    CLT_SHARED(int, a, 32);
    const unsigned mask = threadIdx.x < 16 ? 0xFFFFU : 0xFFFF0000U;
    for (int round = 0; round < (threadIdx.x < 16 ? 3 : 5); ++round) {
        a[threadIdx.x] = round;
        __syncwarp(mask);
        out[threadIdx.x] = a[threadIdx.x ^ 1];
        __syncwarp(mask);
    }
}

__global__ void add_floats(const float* in, float* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(out, in[i]);
}

__global__ void shared_race(float* p) {
    CLT_SHARED(float, tile, 64);
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x] = p[threadIdx.x];
    p[threadIdx.x] = tile[threadIdx.x ^ 32];
}
__global__ void shared_write_write_race(float* p) {
    CLT_SHARED(float, tile, 64);
    tile[threadIdx.x % 32] = p[threadIdx.x];
}
__global__ void read_before_write_race(float* p) {
    CLT_SHARED(float, tile, 64);
    tile[threadIdx.x] = p[threadIdx.x];
    __syncthreads();
    const float x = tile[(threadIdx.x + 32) % 64];
    tile[threadIdx.x] = x;
}
__global__ void missing_syncwarp(float* p) {
    CLT_SHARED(float, tile, 64);
    tile[threadIdx.x] = p[threadIdx.x];
    __syncwarp();
    const float x = tile[threadIdx.x ^ 1];
    tile[threadIdx.x] = x + 1;
}
__global__ void syncwarp_of_other_lanes(float* p) {
    CLT_SHARED(float, tile, 32);
    tile[threadIdx.x] = 0;
    __syncwarp();
    tile[threadIdx.x] = p[threadIdx.x];
    __syncwarp(threadIdx.x < 16 ? 0xFFFFU : 0xFFFF0000U);
    p[threadIdx.x] = tile[threadIdx.x ^ 16];
}
__global__ void block_race(float* p) {
    p[threadIdx.x] = 1;
}
__global__ void block_read_race(float* p) {
    if (blockIdx.x == 0) p[threadIdx.x] = 1;
    if (blockIdx.x == 1) p[128 + threadIdx.x] = p[threadIdx.x];
}
__global__ void block_write_after_read_race(float* p) {
    p[64 * blockIdx.x + threadIdx.x] = p[(64 * blockIdx.x + threadIdx.x + 64) % 192];
}
__global__ void plain_read_of_atomic(float* p) {
    CLT_SHARED(float, sum, 2);
    if (threadIdx.x == 0) sum[0] = 0;
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&sum[0], 1.0F);
    p[threadIdx.x] = sum[0];
}
__global__ void plain_read_of_own_atomic(float* p) {
    CLT_SHARED(float, sum, 2);
    if (threadIdx.x == 0) sum[0] = 0;
    __syncthreads();
    if (threadIdx.x % 32 == 0) atomicAdd(&sum[0], 1.0F);
    if (threadIdx.x == 32) p[0] = sum[0];
}
__global__ void write_after_far_read(float* p) {
    CLT_SHARED(float, tile, 1);
    if (threadIdx.x == 0) tile[0] = p[0];
    __syncthreads();
    const float x = tile[0];
    __syncwarp();
    if (threadIdx.x == 0) tile[0] = x + 1;
}
__global__ void write_after_read_of_other_block(float* p) {
    const float x = p[0];
    __syncthreads();
    if (threadIdx.x == 0 && blockIdx.x == 1) p[0] = x + 1;
}
__global__ void half_word_race(unsigned short* p) {
    p[threadIdx.x % 63] = 1;
}
__global__ void read_behind_end(const float* p, float* q) {
    q[threadIdx.x] = p[threadIdx.x + 193];
}
__global__ void read_before_begin(const float* p, float* q) {
    q[threadIdx.x] = p[static_cast<int>(threadIdx.x) - 1];
}
__global__ void write_behind_end(float* p) {
    p[threadIdx.x + 193] = 1;
}
__global__ void half_word_behind_end(unsigned short* p) {
    p[512 + threadIdx.x] = 1;
}
__global__ void shared_read_behind_end(float* p, int shift) {
    CLT_SHARED(float, tile, 64);
    float* t = tile;
    t[threadIdx.x] = p[threadIdx.x];
    p[threadIdx.x] = t[static_cast<int>(threadIdx.x) + shift];
}
__global__ void shared_write_behind_end(float* p, int shift) {
    CLT_SHARED(float, tile, 63);
    CLT_SHARED(float, other, 64);
    float* t = tile;
    t[static_cast<int>(threadIdx.x) + shift] = p[threadIdx.x];
    other[threadIdx.x] = 0;
}
__global__ void index_of_array(float* p, int shift) {
    CLT_SHARED(float, tile, 63);
    tile[static_cast<int>(threadIdx.x) + shift] = p[threadIdx.x];
}
__global__ void index_of_local_array(float* p, int n) {
    float local[8];
    for (int i = 0; i < n; ++i) local[i] = p[i];
    p[threadIdx.x] = local[threadIdx.x % 8];
}
__global__ void read_through(const float* host, float* q) {
    q[threadIdx.x] = host[threadIdx.x];
}
__global__ void write_through(float* host) {
    host[threadIdx.x] = 1;
}
__global__ void other_stack(float** p) {
    float mine = static_cast<float>(threadIdx.x);
    if (threadIdx.x == 0) p[0] = &mine;
    __syncthreads();
    if (threadIdx.x == 1) p[1] = reinterpret_cast<float*>(static_cast<std::size_t>(*p[0]));
    __syncthreads();
}
__global__ void memcpy_behind_end(float* p, const float* q, int n) {
    memcpy(p + 4, q, static_cast<std::size_t>(n));
}
__global__ void misaligned_float4(float* p, int shift) {
    const float4 v = *reinterpret_cast<const float4*>(p + shift);
    p[0] = v.x + v.y + v.z + v.w;
}
__global__ void write_one_half_word(unsigned short* p) {
    p[0] = 1;
}
__global__ void read_word(const unsigned* p, float* q) {
    q[0] = static_cast<float>(p[0]);
}
__global__ void uninitialised_shared(float* p) {
    CLT_SHARED(float, tile, 64);
    if (threadIdx.x > 0) tile[threadIdx.x] = 1;
    __syncthreads();
    p[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void uninitialised_atomic(float*) {
    CLT_SHARED(float, sum, 1);
    atomicAdd(&sum[0], 1.0F);
}
__global__ void shared_of_last_block(float* p) {
    CLT_SHARED(float, tile, 64);
    if (blockIdx.x == 0) tile[threadIdx.x] = 1;
    if (blockIdx.x == 1) p[threadIdx.x] = tile[threadIdx.x];
}
__global__ void divergent_barrier(float* p) {
    if (threadIdx.x < 7) __syncthreads();
    p[threadIdx.x] = 1;
}
__global__ void early_exit(float* p) {
    if (threadIdx.x == 40) return;
    __syncthreads();
    p[threadIdx.x] = 1;
}
__global__ void barriers_of_two_lines(float* p) {
    if (threadIdx.x < 32) {
        __syncthreads();
        p[threadIdx.x] = 1;
    } else {
        __syncthreads();
        p[threadIdx.x] = 2;
    }
}
__global__ void barrier_against_shuffle(float* p) {
    if (threadIdx.x == 5) __syncthreads();
    p[threadIdx.x] = warp_sum(1.0F);
    if (threadIdx.x != 5) __syncthreads();
}
__global__ void shuffle_with_absent_lane(float* p) {
    if (threadIdx.x < 31)
        p[threadIdx.x] = __shfl_xor_sync(full_mask, 1.0F, 1);
    else
        __syncwarp();
}
__global__ void shuffle_after_exit(float* p) {
    if (threadIdx.x == 3) return;
    p[threadIdx.x] = __shfl_sync(full_mask, 1.0F, 0);
}
__global__ void shuffle_of_all(float* p) {
    p[threadIdx.x] = __shfl_sync(full_mask, 1.0F, 0);
}
__global__ void shuffle_from_outside_the_mask(float* p) {
    if (threadIdx.x % 32 < 16) p[threadIdx.x] = __shfl_down_sync(0xFFFFU, 1.0F, 8U);
}
__global__ void mask_without_caller(float*) {
    __syncwarp(0xFFFFU);
}
__global__ void trapped(const float* p) {
    if (p[threadIdx.x] == 0) __trap();
}
__global__ void nothing() {}

}  // namespace

void block_sum(const float* in, float* out, int blocks, int n) {
    CLT_LAUNCH(sum_rows<128>, blocks, 128, nullptr, in, out, n);
}
void block_scan(const int* in, int* out) {
    CLT_LAUNCH(scan, 1, 256, nullptr, in, out);
}
void histogram(const unsigned* in, unsigned* counts, int n) {
    CLT_LAUNCH(count_nibbles, (n + 63) / 64, 64, nullptr, in, counts, n);
}
void match_ranks(const int* in, int* out) {
    CLT_LAUNCH(rank_matches, 1, 64, nullptr, in, out);
}
void scale_by_four(const float* in, float* out, int n, float factor) {
    CLT_LAUNCH(scale, (n / 4 + 31) / 32, 32, nullptr, reinterpret_cast<const float4*>(in),
               reinterpret_cast<float4*>(out), n / 4, factor);
}
void through_bfloat16(const float* in, std::uint16_t* between, float* out, int n) {
    CLT_LAUNCH(to_bfloat16, (n + 31) / 32, 32, nullptr, in,
               reinterpret_cast<__nv_bfloat16*>(between), n);
    CLT_LAUNCH(from_bfloat16, (n / 2 + 31) / 32, 32, nullptr,
               reinterpret_cast<const __nv_bfloat162*>(between), reinterpret_cast<float2*>(out),
               n / 2);
}
void warp_words(const int* in, long long* out) {
    CLT_LAUNCH(all_warp_words, 1, 32, nullptr, in, out);
}
void atomics(const int* in, int* out, int n) {
    CLT_LAUNCH(use_atomics, (n + 63) / 64, 64, nullptr, in, out, n);
}
void three_dimensions(int* out) {
    CLT_LAUNCH(place, dim3(2, 3, 2), dim3(4, 2, 4), nullptr, out);
}
void sync_in_part_of_a_warp(int* out) {
    CLT_LAUNCH(halves_of_a_warp, 1, 32, nullptr, out);
}
void add_in_float(const float* in, float* out, int n, int threads) {
    CLT_LAUNCH(add_floats, (n + threads - 1) / threads, threads, nullptr, in, out, n);
}

void run_bug(Bug bug, float* p, float* q) {
    const auto halves = reinterpret_cast<unsigned short*>(p);
    float host[64] = {};
    switch (bug) {
        case Bug::shared_race:
            return CLT_LAUNCH(shared_race, 1, 64, nullptr, p);
        case Bug::shared_write_write_race:
            return CLT_LAUNCH(shared_write_write_race, 1, 64, nullptr, p);
        case Bug::read_before_write_race:
            return CLT_LAUNCH(read_before_write_race, 1, 64, nullptr, p);
        case Bug::missing_syncwarp:
            return CLT_LAUNCH(missing_syncwarp, 1, 64, nullptr, p);
        case Bug::syncwarp_of_other_lanes:
            return CLT_LAUNCH(syncwarp_of_other_lanes, 1, 32, nullptr, p);
        case Bug::block_race:
            return CLT_LAUNCH(block_race, 2, 64, nullptr, p);
        case Bug::block_read_race:
            return CLT_LAUNCH(block_read_race, 2, 64, nullptr, p);
        case Bug::block_write_after_read_race:
            return CLT_LAUNCH(block_write_after_read_race, 3, 64, nullptr, p);
        case Bug::plain_read_of_atomic:
            return CLT_LAUNCH(plain_read_of_atomic, 1, 64, nullptr, p);
        case Bug::plain_read_of_own_atomic:
            return CLT_LAUNCH(plain_read_of_own_atomic, 1, 64, nullptr, p);
        case Bug::write_after_far_read:
            return CLT_LAUNCH(write_after_far_read, 1, 64, nullptr, p);
        case Bug::write_after_read_of_other_block:
            return CLT_LAUNCH(write_after_read_of_other_block, 2, 64, nullptr, p);
        case Bug::half_word_race:
            return CLT_LAUNCH(half_word_race, 1, 64, nullptr, halves);
        case Bug::read_behind_end:
            return CLT_LAUNCH(read_behind_end, 1, 64, nullptr, p, q);
        case Bug::read_before_begin:
            return CLT_LAUNCH(read_before_begin, 1, 64, nullptr, p, q);
        case Bug::write_behind_end:
            return CLT_LAUNCH(write_behind_end, 1, 64, nullptr, p);
        case Bug::half_word_behind_end:
            return CLT_LAUNCH(half_word_behind_end, 1, 1, nullptr, halves);
        case Bug::shared_read_behind_end:
            return CLT_LAUNCH(shared_read_behind_end, 1, 64, nullptr, p, 64);
        case Bug::shared_write_behind_end:
            return CLT_LAUNCH(shared_write_behind_end, 1, 64, nullptr, p, 0);
        case Bug::index_of_array:
            return CLT_LAUNCH(index_of_array, 1, 64, nullptr, p, 0);
        case Bug::index_of_local_array:
            return CLT_LAUNCH(index_of_local_array, 1, 32, nullptr, p, 9);
        case Bug::host_pointer_read:
            return CLT_LAUNCH(read_through, 1, 64, nullptr, host, q);
        case Bug::host_pointer_write:
            return CLT_LAUNCH(write_through, 1, 64, nullptr, host);
        case Bug::other_stack:
            return CLT_LAUNCH(other_stack, 1, 64, nullptr, reinterpret_cast<float**>(p));
        case Bug::memcpy_behind_end:
            return CLT_LAUNCH(memcpy_behind_end, 1, 1, nullptr, p, q, 1024);
        case Bug::misaligned_float4:
            return CLT_LAUNCH(misaligned_float4, 1, 1, nullptr, p, 1);
        case Bug::uninitialised_global:
            return CLT_LAUNCH(read_through, 1, 64, nullptr, p, q);
        case Bug::uninitialised_half_word:
            CLT_LAUNCH(write_one_half_word, 1, 1, nullptr, halves);
            return CLT_LAUNCH(read_word, 1, 1, nullptr, reinterpret_cast<unsigned*>(p), q);
        case Bug::uninitialised_shared:
            return CLT_LAUNCH(uninitialised_shared, 1, 64, nullptr, p);
        case Bug::uninitialised_atomic:
            return CLT_LAUNCH(uninitialised_atomic, 1, 64, nullptr, p);
        case Bug::shared_of_last_block:
            return CLT_LAUNCH(shared_of_last_block, 2, 64, nullptr, p);
        case Bug::divergent_barrier:
            return CLT_LAUNCH(divergent_barrier, 1, 64, nullptr, p);
        case Bug::early_exit:
            return CLT_LAUNCH(early_exit, 1, 64, nullptr, p);
        case Bug::barriers_of_two_lines:
            return CLT_LAUNCH(barriers_of_two_lines, 1, 64, nullptr, p);
        case Bug::barrier_against_shuffle:
            return CLT_LAUNCH(barrier_against_shuffle, 1, 64, nullptr, p);
        case Bug::shuffle_with_absent_lane:
            return CLT_LAUNCH(shuffle_with_absent_lane, 1, 32, nullptr, p);
        case Bug::shuffle_after_exit:
            return CLT_LAUNCH(shuffle_after_exit, 1, 64, nullptr, p);
        case Bug::shuffle_of_half_a_warp_with_full_mask:
            return CLT_LAUNCH(shuffle_of_all, 1, 16, nullptr, p);
        case Bug::shuffle_from_outside_the_mask:
            return CLT_LAUNCH(shuffle_from_outside_the_mask, 1, 32, nullptr, p);
        case Bug::mask_without_caller:
            return CLT_LAUNCH(mask_without_caller, 1, 32, nullptr, p);
        case Bug::trap:
            return CLT_LAUNCH(trapped, 1, 64, nullptr, p);
    }
}
void launch_too_many_threads() {
    CLT_LAUNCH(nothing, 1, 1025, nullptr);
}
float read_on_host(const float* p) {
    return *p;
}

}  // namespace clt::test
