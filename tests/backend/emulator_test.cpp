// The emulator finds what it must: right kernels give right results in every order, and each
// planted bug ends its launch with a message that says what and where.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "clt/base/float16.hpp"
#include "planted_bugs.hpp"
#include "support/cuda_on_cpu/emulator.hpp"

namespace clt::test {
namespace {

/// n elements of device memory.
template <class T>
class OnDevice {
  public:
    explicit OnDevice(std::size_t n)
        : n_(n), data_(static_cast<T*>(emu::device_malloc(n * sizeof(T)))) {}
    explicit OnDevice(const std::vector<T>& host) : OnDevice(host.size()) {
        emu::copy_to_device(data_, host.data(), n_ * sizeof(T));
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { emu::device_free(data_); }

    T* data() { return data_; }
    std::vector<T> host() const {
        std::vector<T> host(n_);
        emu::copy_to_host(host.data(), data_, n_ * sizeof(T));
        return host;
    }

  private:
    std::size_t n_;
    T* data_;
};

std::vector<int> random_integers(int n, int below) {
    std::mt19937 generator(7);
    std::uniform_int_distribution<int> distribution(0, below - 1);
    std::vector<int> values(static_cast<std::size_t>(n));
    for (int& value : values) value = distribution(generator);
    return values;
}

std::string message_of(const auto& call) {
    try {
        call();
    } catch (const emu::Error& error) {
        return error.what();
    }
    return "no error";
}

/// Every test runs in ascending order and in drawn ones.
class Emulator : public testing::TestWithParam<std::uint64_t> {
  protected:
    void SetUp() override { emu::set_order(GetParam()); }
    void TearDown() override { emu::set_order(0); }
};
INSTANTIATE_TEST_SUITE_P(Orders, Emulator, testing::Values(0, 1, 2, 3));

void expect_next_launch_works() {
    OnDevice<float> in(std::vector<float>(200, 1.0F));
    OnDevice<float> out(2);
    block_sum(in.data(), out.data(), 2, 100);
    EXPECT_EQ(out.host(), (std::vector<float>{100, 100}));
}

TEST_P(Emulator, SumsRows) {
    const int blocks = 37, n = 301;
    const std::vector<int> values = random_integers(blocks * n, 1000);  // exact in float
    OnDevice<float> in(std::vector<float>(values.begin(), values.end()));
    OnDevice<float> out(blocks);
    block_sum(in.data(), out.data(), blocks, n);
    std::vector<float> expected;
    for (int b = 0; b < blocks; ++b)
        expected.push_back(static_cast<float>(
            std::accumulate(values.begin() + b * n, values.begin() + (b + 1) * n, 0)));
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, EmptyGridLaunchesNothing) {
    OnDevice<float> out(1);
    block_sum(out.data(), out.data(), 0, 1);
}

TEST_P(Emulator, Scans) {
    const std::vector<int> values = random_integers(256, 100);
    OnDevice<int> in(values), out(256);
    block_scan(in.data(), out.data());
    std::vector<int> expected(256);
    std::exclusive_scan(values.begin(), values.end(), expected.begin(), 0);
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, CountsWithAtomics) {
    const std::vector<int> values = random_integers(1001, 1 << 20);
    OnDevice<unsigned> in(std::vector<unsigned>(values.begin(), values.end()));
    OnDevice<unsigned> counts(std::vector<unsigned>(16, 0));
    histogram(in.data(), counts.data(), 1001);
    std::vector<unsigned> expected(16);
    for (const int value : values) ++expected[static_cast<unsigned>(value) % 16];
    EXPECT_EQ(counts.host(), expected);
}

TEST_P(Emulator, MatchesLanes) {
    const std::vector<int> values = random_integers(64, 5);
    OnDevice<int> in(values), out(64);
    match_ranks(in.data(), out.data());
    std::vector<int> expected;
    for (int i = 0; i < 64; ++i) {
        const auto warp = values.begin() + i / 32 * 32;
        const int value = values[static_cast<std::size_t>(i)];
        expected.push_back(static_cast<int>(100 * std::count(warp, warp + 32, value) +
                                            std::count(warp, values.begin() + i, value)));
    }
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, MovesFourFloats) {
    const std::vector<int> values = random_integers(132, 100);
    OnDevice<float> in(std::vector<float>(values.begin(), values.end())), out(132);
    scale_by_four(in.data(), out.data(), 132, 0.5F);
    std::vector<float> expected;
    for (const int value : values) expected.push_back(static_cast<float>(value) * 0.5F);
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, RoundsToBfloat16) {
    std::mt19937 generator(11);
    std::vector<float> values(64);
    for (float& value : values) value = std::normal_distribution<float>()(generator);
    values[0] = 1.00390625F;  // half way: to even
    values[1] = 1.01171875F;
    values[2] = std::numeric_limits<float>::infinity();
    OnDevice<float> in(values), out(64);
    OnDevice<std::uint16_t> between(64);
    through_bfloat16(in.data(), between.data(), out.data(), 64);
    std::vector<float> expected;
    for (const float value : values)
        expected.push_back(bfloat16_to_float(float_to_bfloat16(value)));
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, ComputesWarpWords) {
    const std::vector<int> x = random_integers(32, 50);
    OnDevice<int> in(x);
    OnDevice<long long> out(32);
    warp_words(in.data(), out.data());
    const auto at = [&](int lane) { return x[static_cast<std::size_t>(lane)]; };
    std::vector<long long> expected;
    for (int lane = 0; lane < 32; ++lane) {
        long long sum = at((lane + 3) % 32);
        sum += 10LL * at(lane % 8 >= 2 ? lane - 2 : lane);
        sum += 1000LL * at(lane % 16 + 5 < 16 ? lane + 5 : lane);
        sum += 100000LL * at(lane ^ 9);
        sum += static_cast<long long>(at(1)) << 33;
        sum += static_cast<long long>(0.5 * at(lane ^ 1));
        sum += 10000000LL * std::count_if(x.begin(), x.end(), [](int v) { return v % 3 == 0; });
        sum += (std::count(x.begin(), x.end(), 7) > 0 ? 1 : 0) + 2;
        sum += std::accumulate(x.begin(), x.end(), 0) - *std::min_element(x.begin(), x.end());
        expected.push_back(sum);
    }
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, ComparesAndSwaps) {
    const std::vector<int> values = random_integers(200, 1000);
    OnDevice<int> in(values), out(std::vector<int>{0, 0});
    atomics(in.data(), out.data(), 200);
    EXPECT_EQ(out.host(), (std::vector<int>{*std::max_element(values.begin(), values.end()),
                                            std::accumulate(values.begin(), values.end(), 0)}));
}

TEST_P(Emulator, HasThreeDimensions) {
    OnDevice<int> out(384);
    three_dimensions(out.data());
    std::vector<int> expected(384);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(out.host(), expected);
}

TEST_P(Emulator, LetsPartsOfAWarpSync) {
    OnDevice<int> out(32);
    sync_in_part_of_a_warp(out.data());
    std::vector<int> expected(32, 2);
    std::fill(expected.begin() + 16, expected.end(), 4);
    EXPECT_EQ(out.host(), expected);
}

TEST(EmulatorOrder, ShowsASumThatDependsOnIt) {
    std::vector<float> values(256);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.0F / static_cast<float>(i + 1);
    OnDevice<float> in(values);
    for (const int threads : {1, 256}) {  // the order of blocks, and of threads
        const auto sum = [&](std::uint64_t seed) {
            emu::set_order(seed);
            OnDevice<float> out(std::vector<float>{0});
            add_in_float(in.data(), out.data(), 256, threads);
            emu::set_order(0);
            return out.host()[0];
        };
        EXPECT_EQ(sum(0), std::accumulate(values.begin(), values.end(), 0.0F));
        EXPECT_NE(sum(0), sum(1));
        EXPECT_EQ(sum(1), sum(1));
    }
}

struct Planted {
    Bug bug;
    std::vector<std::string> says;
};

/// Each part of the message, in this order.
void expect_says(const std::string& message, const std::vector<std::string>& parts) {
    std::size_t from = 0;
    for (const std::string& part : parts) {
        const std::size_t found = message.find(part, from);
        if (found == std::string::npos) {
            ADD_FAILURE() << "\"" << part << "\" is not in: " << message;
            return;
        }
        from = found + part.size();
    }
}

void expect_caught(std::span<const Planted> bugs, bool written) {
    for (const auto& [bug, says] : bugs) {
        SCOPED_TRACE(says.front());
        OnDevice<float> p(256), q(256);
        if (written) {
            emu::set_on_device(p.data(), 0, 1024);
            emu::set_on_device(q.data(), 0, 1024);
        }
        expect_says(message_of([&] { run_bug(bug, p.data(), q.data()); }), says);
        expect_next_launch_works();
    }
}

TEST_P(Emulator, CatchesRaces) {
    expect_caught(
        std::vector<Planted>{
            {Bug::shared_race,
             {"shared_race, block (0, 0, 0), thread (", "race: ", " of 4 bytes at byte ",
              "of shared array tile (256 bytes) and the ", " of block (0, 0, 0), thread ("}},
            {Bug::shared_write_write_race,
             {"shared_write_write_race", "race: write", "tile", "and the write of"}},
            {Bug::read_before_write_race, {"read_before_write_race", "race: ", "tile", "and the "}},
            {Bug::missing_syncwarp, {"missing_syncwarp", "race: ", "tile"}},
            {Bug::syncwarp_of_other_lanes, {"syncwarp_of_other_lanes", "race: ", "tile"}},
            {Bug::block_race,
             {"block_race, block (", "race: write of 4 bytes at byte ", " of allocation ",
              "(1024 bytes) and the write of block ("}},
            {Bug::block_read_race, {"block_read_race", "race: ", "allocation", "and the "}},
            {Bug::block_write_after_read_race,
             {"block_write_after_read_race", "race: ", "allocation", "and the "}},
            {Bug::plain_read_of_atomic, {"plain_read_of_atomic", "race: ", "sum"}},
            {Bug::plain_read_of_own_atomic, {"plain_read_of_own_atomic", "race: ", "sum"}},
            {Bug::write_after_far_read, {"write_after_far_read", "race: ", "tile", "and the "}},
            {Bug::write_after_read_of_other_block,
             {"write_after_read_of_other_block", "race: ", "and the "}},
            {Bug::half_word_race, {"half_word_race", "race: write of 2 bytes at byte 0 of"}},
        },
        true);
}

TEST_P(Emulator, CatchesWhatIsOutOfBounds) {
    expect_caught(
        std::vector<Planted>{
            {Bug::read_behind_end,
             {"read_behind_end, block (0, 0, 0), thread (63, 0, 0): out of bounds: read of 4 bytes "
              "at 0 bytes behind the end of allocation",
              "(1024 bytes)", "addr2line -Cfie emulator_test 0x"}},
            {Bug::read_before_begin,
             {"thread (0, 0, 0): out of bounds: read of 4 bytes at 4 bytes before allocation"}},
            {Bug::write_behind_end,
             {"thread (63, 0, 0): out of bounds: write of 4 bytes at 0 bytes behind the end"}},
            {Bug::half_word_behind_end, {"out of bounds: write of 2 bytes at 0 bytes behind"}},
            {Bug::shared_read_behind_end,
             {"out of bounds: read of 4 bytes at ", "behind the end of shared array tile (256"}},
            {Bug::shared_write_behind_end,
             {"thread (63, 0, 0): out of bounds: write of 4 bytes at 0 bytes behind the end of "
              "shared array tile (252 bytes)"}},
            {Bug::index_of_array,
             {"thread (63, 0, 0): out of bounds: index 63 of an array (planted_bugs.cu:"}},
            {Bug::index_of_local_array, {"out of bounds: index 8 of an array (planted_bugs.cu:"}},
            {Bug::host_pointer_read, {"out of bounds: read of 4 bytes", "is not device memory"}},
            {Bug::host_pointer_write, {"out of bounds: write of 4 bytes", "is not device memory"}},
            {Bug::other_stack,
             {"thread (1, 0, 0): out of bounds: read of 4 bytes", "is not device memory"}},
            {Bug::memcpy_behind_end, {"out of bounds: write of 1024 bytes at byte 16 of alloc"}},
            {Bug::misaligned_float4, {"misaligned: access at byte 4 of allocation"}},
        },
        true);
}

TEST_P(Emulator, CatchesUninitialisedReads) {
    expect_caught(
        std::vector<Planted>{
            {Bug::uninitialised_global,
             {"read_through, block (0, 0, 0)", "uninitialised: read of 4 bytes at byte ",
              "of allocation"}},
            {Bug::uninitialised_half_word, {"uninitialised: read of 4 bytes at byte 0 of alloc"}},
        },
        false);
    expect_caught(
        std::vector<Planted>{
            {Bug::uninitialised_shared,
             {"thread (63, 0, 0): uninitialised: read of 4 bytes at byte 0 of shared array tile"}},
            {Bug::uninitialised_atomic,
             {"uninitialised: atomic operation of 4 bytes at byte 0 of shared array sum"}},
            {Bug::shared_of_last_block,
             {"block (1, 0, 0)", "uninitialised: read of 4 bytes", "shared array tile"}},
        },
        true);
}

TEST_P(Emulator, CatchesBarriersThatAreNotShared) {
    expect_caught(
        std::vector<Planted>{
            {Bug::divergent_barrier,
             {"divergent_barrier, block (0, 0, 0): divergent barrier: thread (0, 0, 0) waits at "
              "__syncthreads (planted_bugs.cu:",
              "thread (7, 0, 0) has exited"}},
            {Bug::early_exit, {"divergent barrier: ", "thread (40, 0, 0) has exited"}},
            {Bug::barriers_of_two_lines,
             {"barriers_of_two_lines", "divergent barrier: it waits at __syncthreads (planted_bugs",
              "waits at __syncthreads (planted_bugs.cu:"}},
            {Bug::barrier_against_shuffle,
             {"divergent barrier: thread (5, 0, 0) waits at __syncthreads (planted_bugs.cu:",
              "thread (0, 0, 0) waits at __shfl_down_sync with mask 0xffffffff (planted_bugs.cu:"}},
            {Bug::shuffle_with_absent_lane,
             {"divergent warp: thread (0, 0, 0) waits at __shfl_xor_sync with mask 0xffffffff (",
              "thread (31, 0, 0) waits at __syncwarp with mask 0xffffffff"}},
            {Bug::shuffle_after_exit, {"divergent warp: ", "has exited"}},
            {Bug::shuffle_of_half_a_warp_with_full_mask,
             {"divergent warp: it waits at __shfl_sync with mask 0xffffffff",
              "but lane 16 has exited or never was"}},
            {Bug::shuffle_from_outside_the_mask,
             {"thread (8, 0, 0): __shfl_down_sync reads lane 16, which mask 0x0000ffff leaves "
              "out"}},
            {Bug::mask_without_caller,
             {"it waits at __syncwarp with mask 0x0000ffff (planted_bugs", "which leaves it out"}},
        },
        true);
}

/// Not in planted_bugs.cu: nvcc refuses to compile it.
void too_much_shared() {
    CLT_SHARED(float, most, 8192);
    CLT_SHARED(float, rest, 4097);
    most[0] = rest[0] = 0;
}

TEST_P(Emulator, CatchesWhatTheDeviceRefuses) {
    expect_caught(
        std::vector<Planted>{{Bug::trap, {"trapped, block (0, 0, 0)", "__trap (planted_bugs.cu:"}}},
        true);
    expect_says(message_of([] { emu::launch("much", too_much_shared, 1, 32, nullptr); }),
                {"much, block (0, 0, 0)", "shared memory: 49168 bytes with rest, more than 49152"});
    EXPECT_EQ(message_of([] { launch_too_many_threads(); }),
              "nothing: invalid configuration: grid (1, 1, 1), block (1025, 1, 1)");
}

TEST_P(Emulator, CatchesUseAfterFree) {
    OnDevice<float> q(std::vector<float>(256, 0.0F));
    auto* p = static_cast<float*>(emu::device_malloc(1024));
    emu::set_on_device(p, 0, 1024);
    emu::device_free(p);
    expect_says(message_of([&] { run_bug(Bug::uninitialised_global, p, q.data()); }),
                {"read_through", "out of bounds: read of 4 bytes at byte ", "of freed allocation"});
    expect_says(message_of([&] { run_bug(Bug::block_race, p, p); }),
                {"out of bounds: write of 4 bytes at byte ", "of freed allocation"});
    expect_says(message_of([&] { emu::device_free(p); }), {"freed", "is no live allocation"});
    expect_says(message_of([&] { emu::device_free(q.data() + 1); }), {"is no live allocation"});
    expect_next_launch_works();
}

TEST(EmulatorHost, MustNotTouchDeviceMemory) {
    OnDevice<float> p(std::vector<float>(4, 1.0F));
    expect_says(message_of([&] { read_on_host(p.data()); }),
                {"host code touches device memory: read of 4 bytes at byte 0 of allocation"});
    float host[4];
    // By a pointer: the compiler takes a direct memcpy for one that cannot throw, and terminates.
    void* (*volatile copy)(void*, const void*, std::size_t) = std::memcpy;
    expect_says(message_of([&] { copy(host, p.data(), 16); }),
                {"host code touches device memory: read of 16 bytes"});
    float one = 1;
    EXPECT_EQ(read_on_host(&one), 1.0F);
}

TEST(EmulatorHost, CopiesAreChecked) {
    OnDevice<char> p(10), q(10);
    char host[12] = "abcdefghijk";
    emu::copy_to_device(p.data(), host, 6);
    emu::copy_to_host(host + 6, p.data(), 3);
    EXPECT_EQ(std::string(host, 9), "abcdefabc");
    expect_says(message_of([&] { emu::copy_to_host(host, p.data(), 7); }),
                {"copy to the host: 7 bytes from byte 0 of", "not all of them were written"});
    expect_says(message_of([&] { emu::copy_to_device(p.data(), host, 11); }),
                {"copy to the device: 11 bytes from byte 0 of", "(10 bytes): out of bounds"});
    emu::copy_on_device(q.data() + 1, p.data() + 4, 4);  // two written, two not
    emu::copy_to_host(host, q.data() + 1, 2);
    EXPECT_EQ(std::string(host, 2), "ef");
    EXPECT_NE(message_of([&] { emu::copy_to_host(host, q.data() + 1, 3); }), "no error");
    EXPECT_NE(message_of([&] { emu::copy_to_host(host, q.data(), 2); }), "no error");
    emu::copy_on_device(p.data() + 2, p.data(), 6);  // overlaps
    emu::copy_to_host(host, p.data(), 8);
    EXPECT_EQ(std::string(host, 8), "ababcdef");
    EXPECT_NE(message_of([&] { emu::copy_on_device(q.data() + 5, p.data(), 6); }), "no error");
    emu::set_on_device(q.data(), 'x', 10);
    emu::copy_to_host(host, q.data(), 10);
    EXPECT_EQ(std::string(host, 10), "xxxxxxxxxx");
    EXPECT_NE(message_of([&] { emu::set_on_device(q.data(), 0, 11); }), "no error");
    EXPECT_NE(message_of([&] { emu::copy_to_device(host, p.data(), 1); }), "no error");
}

TEST(EmulatorHost, LibrariesAreChecked) {
    OnDevice<float> p(4);
    expect_says(message_of([&] { emu::library_reads("sgemm, A", p.data(), 16); }),
                {"sgemm, A: 16 bytes from byte 0 of", "not all of them were written"});
    emu::library_writes("sgemm, C", p.data(), 16);
    emu::library_reads("sgemm, A", p.data(), 16);
    expect_says(message_of([&] { emu::library_writes("sgemm, C", p.data() + 1, 16); }),
                {"sgemm, C: 16 bytes from byte 4 of", "out of bounds"});
}

TEST(EmulatorHost, MemoryEnds) {
    EXPECT_EQ(emu::bytes_allocated(), 0U);
    EXPECT_EQ(emu::device_malloc(emu::memory_limit() + 1), nullptr);
    const std::size_t all = emu::memory_limit();
    emu::set_memory_limit(1000);
    {
        OnDevice<char> p(600);
        EXPECT_NE(p.data(), nullptr);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p.data()) % 256, 0U);
        EXPECT_EQ(emu::device_malloc(401), nullptr);
        OnDevice<char> q(400);
        EXPECT_NE(q.data(), nullptr);
        EXPECT_EQ(emu::bytes_allocated(), 1000U);
    }
    emu::set_memory_limit(all);
    EXPECT_EQ(emu::bytes_allocated(), 0U);
    OnDevice<char> none(0);
    EXPECT_NE(none.data(), nullptr);
    EXPECT_NE(message_of([&] { emu::set_on_device(none.data(), 0, 1); }), "no error");
}

/// More than the arena in turn: places are used again, as uninitialised memory.
TEST(EmulatorHost, MemoryIsUsedAgain) {
    const std::size_t bytes = std::size_t{100} << 20;
    OnDevice<float> kept(std::vector<float>{5});
    const std::size_t rounds = emu::memory_limit() / bytes + 3;
    for (std::size_t i = 0; i < rounds; ++i) {
        OnDevice<float> p(bytes / sizeof(float));
        ASSERT_NE(p.data(), nullptr);
        EXPECT_NE(message_of([&] { emu::library_reads("test", p.data(), 4); }), "no error");
        emu::set_on_device(p.data(), 0, 4);
    }
    EXPECT_EQ(kept.host()[0], 5.0F);
}

}  // namespace
}  // namespace clt::test
