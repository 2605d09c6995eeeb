#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "clt/base/checksum.hpp"
#include "clt/base/float16.hpp"
#include "clt/base/philox.hpp"
#include "clt/base/types.hpp"
#include "clt/memory/memory.hpp"

namespace clt {
namespace {

TEST(Shard, TilesTheRangeInOrderWithSizesThatDifferByAtMostOne) {
    for (const Index n : {0, 1, 2, 3, 7, 31, 32, 33, 1000}) {
        for (const Index parts : {1, 2, 3, 5, 8, 40}) {
            Index at = 0;
            for (Index p = 0; p < parts; ++p) {
                const Shard shard = shard_of(n, p, parts);
                EXPECT_EQ(shard.begin, at);
                EXPECT_GE(shard.size(), n / parts);
                EXPECT_LE(shard.size(), n / parts + 1);
                for (Index i = shard.begin; i < shard.end; ++i)
                    EXPECT_EQ(shard_owner(n, i, parts), p);
                at = shard.end;
            }
            EXPECT_EQ(at, n);
        }
    }
}

TEST(Philox, MatchesTheAuthorsKnownAnswers) {
    // Random123's kat_vectors, philox4x32 10 rounds: counter and key all zero, then all ones.
    const auto zero = detail::philox({0, 0, 0, 0}, 0, 0);
    EXPECT_EQ(zero, (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    const std::uint32_t ones = 0xffffffff;
    const auto one = detail::philox({ones, ones, ones, ones}, ones, ones);
    EXPECT_EQ(one, (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, UniformStaysInTheIntervalAndPurposesDiffer) {
    double sum = 0;
    for (std::uint64_t i = 0; i < 10000; ++i) {
        const float u = random_uniform(42, RandomPurpose::encoder_weight, i, -0.5F, 0.5F);
        ASSERT_GE(u, -0.5F);
        ASSERT_LT(u, 0.5F);
        sum += u;
    }
    EXPECT_NEAR(sum / 10000, 0,
                0.015);  // 5 sigma of the mean of 10,000 uniforms: 5 / sqrt(12e4) = 0.0144
    EXPECT_NE(random_bits(42, RandomPurpose::encoder_weight, 0),
              random_bits(42, RandomPurpose::decoder_weight, 0));
    EXPECT_NE(random_bits(42, RandomPurpose::encoder_weight, 0),
              random_bits(43, RandomPurpose::encoder_weight, 0));
}

TEST(Float16, EveryBitPatternRoundTrips) {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const auto pattern = static_cast<std::uint16_t>(bits);
        const float half = float16_to_float(pattern);
        if (std::isnan(half)) {
            EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(half))));
        } else {
            EXPECT_EQ(float_to_float16(half), pattern);
        }
        const float brain = bfloat16_to_float(pattern);
        if (std::isnan(brain)) {
            EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(brain))));
        } else {
            EXPECT_EQ(float_to_bfloat16(brain), pattern);
        }
    }
}

TEST(Float16, RoundsToNearestEven) {
    EXPECT_EQ(float_to_bfloat16(-1.0F), 0xBF80);           // reference-cases C18
    EXPECT_EQ(float_to_bfloat16(1.0F + 0x1p-8F), 0x3F80);  // a tie goes to even
    EXPECT_EQ(float_to_bfloat16(1.0F + 0x3p-8F), 0x3F82);
    EXPECT_EQ(float_to_float16(65504.0F), 0x7BFF);
    EXPECT_EQ(float_to_float16(65519.0F), 0x7BFF);
    EXPECT_EQ(float_to_float16(65520.0F), 0x7C00);
    EXPECT_EQ(float_to_float16(0x1p-25F), 0);  // tie between 0 and the smallest subnormal
    EXPECT_EQ(float_to_float16(0x1.8p-25F), 1);
    EXPECT_EQ(float_to_float16(1.0F + 0x1p-11F), 0x3C00);
}

TEST(Memory, CountsByPurposeAndSpansCheckTheirBounds) {
    HostMemory memory;
    {
        Buffer<float> a(memory, 1000, Purpose::parameters);
        Buffer<double> b(memory, 10, Purpose::moments);
        EXPECT_EQ(memory.bytes_in_use(Purpose::parameters), 4000U);
        EXPECT_EQ(memory.bytes_in_use(), 4080U);
        EXPECT_EQ(a.span().subspan(990, 10).size(), 10);
        EXPECT_THROW(static_cast<void>(a.span().subspan(991, 10)), InternalError);
        a = Buffer<float>();
        EXPECT_EQ(memory.bytes_in_use(Purpose::parameters), 0U);
    }
    EXPECT_EQ(memory.bytes_in_use(), 0U);
    EXPECT_EQ(memory.peak_bytes(), 4080U);
}

TEST(Memory, OutOfMemoryNamesThePurpose) {
    HostMemory memory;
    try {
        Buffer<float> huge(memory, Index{1} << 60, Purpose::moments);
        FAIL() << "allocated an exabyte";
    } catch (const UserError& e) {
        EXPECT_NE(std::string(e.what()).find("optimiser moments"), std::string::npos) << e.what();
    }
}

TEST(ChecksumTest, PartsMayBeSummedAndEveryChangeShows) {
    std::string bytes(100, 'x');
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7);
    const std::span<const std::byte> all = std::as_bytes(std::span(bytes));
    const std::uint64_t whole = checksum_of(all);
    EXPECT_EQ(whole, checksum_of(all.first(64)) + checksum_of(all.subspan(64), 8));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<char>(bytes[i] ^ 1);
        EXPECT_NE(whole, checksum_of(all)) << i;
        bytes[i] = static_cast<char>(bytes[i] ^ 1);
    }
    // Zeros that fill up a word are not the same as zeros that are there.
    EXPECT_NE(checksum_of(std::string_view("a")), checksum_of(std::string_view("a\0", 2)));
    std::swap(bytes[0], bytes[8]);
    EXPECT_NE(whole, checksum_of(all));
}

}  // namespace
}  // namespace clt
