// Kernels for the tests of the emulator, called through plain functions: right ones, and one for
// each kind of bug. Every pointer is device memory.
#pragma once

#include <cstdint>

namespace clt::test {

// Right.
/// out (blocks): sums of rows of in (blocks, n).
void block_sum(const float* in, float* out, int blocks, int n);
/// out (256): exclusive prefix sums of in (256).
void block_scan(const int* in, int* out);
/// counts (16), zeroed by the caller: how many of in (n) have each low nibble.
void histogram(const unsigned* in, unsigned* counts, int n);
/// out (64): how many lanes of the warp have in's value, and the rank among them, as 100 * n +
/// rank.
void match_ranks(const int* in, int* out);
/// out (n) = in (n) * factor, by float4; n is a multiple of 4.
void scale_by_four(const float* in, float* out, int n, float factor);
/// out (n): in (n) through bfloat16 in memory, odd elements first.
void through_bfloat16(const float* in, std::uint16_t* between, float* out, int n);
/// out (32): votes, shuffles of every kind and reductions, added up per lane.
void warp_words(const int* in, long long* out);
/// out (2): the largest of in (n), and what atomicCAS added up.
void atomics(const int* in, int* out, int n);
/// out (384) = its own index, from a grid and a block of three dimensions.
void three_dimensions(int* out);
/// out (32): 2 in the lower half of a warp, 4 in the upper, which sync on their own.
void sync_in_part_of_a_warp(int* out);
/// out (1) += the sum of in (n), in the order of the blocks and their threads.
void add_in_float(const float* in, float* out, int n, int threads);

// Wrong.
enum class Bug {
    shared_race,
    shared_write_write_race,
    read_before_write_race,
    missing_syncwarp,
    syncwarp_of_other_lanes,
    block_race,
    block_read_race,
    block_write_after_read_race,
    plain_read_of_atomic,
    plain_read_of_own_atomic,
    write_after_far_read,
    write_after_read_of_other_block,
    half_word_race,
    read_behind_end,
    read_before_begin,
    write_behind_end,
    half_word_behind_end,
    shared_read_behind_end,
    shared_write_behind_end,
    index_of_array,
    index_of_local_array,
    host_pointer_read,
    host_pointer_write,
    other_stack,
    memcpy_behind_end,
    misaligned_float4,
    uninitialised_global,
    uninitialised_half_word,
    uninitialised_shared,
    uninitialised_atomic,
    shared_of_last_block,
    divergent_barrier,
    early_exit,
    barriers_of_two_lines,
    barrier_against_shuffle,
    shuffle_with_absent_lane,
    shuffle_after_exit,
    shuffle_of_half_a_warp_with_full_mask,
    shuffle_from_outside_the_mask,
    mask_without_caller,
    trap
};
/// p (256 floats, written) and its twin q, on threads of one or several blocks.
void run_bug(Bug bug, float* p, float* q);
void launch_too_many_threads();

/// Host code that is compiled for the hooks.
float read_on_host(const float* p);

}  // namespace clt::test
