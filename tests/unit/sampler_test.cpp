// The reference's batch order, bit for bit (reference-cases C17, C20), and what we add to it: no
// row is lost, epochs follow without a gap.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "data/numpy_random.hpp"
#include "data/sampler.hpp"

namespace clt {
namespace {

using Rows = std::vector<std::pair<std::size_t, std::uint32_t>>;  // (unit, row)

SamplerSettings settings(Sampling sampling, Index take, std::vector<Index> sizes) {
    return {.sampling = sampling, .seed = 42, .take = take, .sizes = std::move(sizes)};
}

/// The reference's batches: runs of B inside a take, remainders dropped.
std::vector<Rows> whole_batches(const Epoch& epoch, Index batch) {
    std::vector<Rows> batches;
    for (const Take& take : epoch.takes()) {
        const auto rows = epoch.rows(take.unit);
        for (Index at = take.begin; at + batch <= take.begin + take.count; at += batch) {
            Rows pairs;
            for (Index i = at; i < at + batch; ++i)
                pairs.emplace_back(take.unit, rows[static_cast<std::size_t>(i)]);
            batches.push_back(pairs);
        }
    }
    return batches;
}

/// The next n tokens of the stream.
Rows tokens(const Sampler& sampler, StreamPosition start, Index n) {
    Rows out;
    for (TakeStream stream(sampler, start); n > 0 && !stream.done(); stream.advance()) {
        const auto rows = stream.epoch().rows(stream.take().unit);
        for (Index i = 0; i < stream.take().count && n > 0; ++i, --n)
            out.emplace_back(stream.take().unit,
                             rows[static_cast<std::size_t>(stream.take().begin + i)]);
    }
    return out;
}

TEST(NumpyRandom, FirstOutputsOfSeed42) {
    NumpyRandom random(42);
    EXPECT_EQ(random.next64(), 0xC621FBCD16D92688U);
    EXPECT_EQ(random.next64(), 0x705A5661A791FFC1U);
    NumpyRandom halves(42);
    EXPECT_EQ(halves.next32(), 0x16D92688U);
    EXPECT_EQ(halves.next32(), 0xC621FBCDU);
    EXPECT_EQ(halves.next32(), 0xA791FFC1U);
}

TEST(NumpyRandom, PermutationOf20) {
    EXPECT_EQ(NumpyRandom(42).permutation(20),
              (std::vector<std::uint32_t>{15, 9, 14, 7,  12, 10, 6,  19, 3,  0,
                                          16, 5, 11, 18, 2,  4,  17, 1,  13, 8}));
}

TEST(NumpyRandom, SkippingAShuffleEqualsDoingIt) {
    NumpyRandom done(7);
    NumpyRandom skipped(7);
    done.permutation(1001);
    skipped.skip_shuffle(1001);
    EXPECT_EQ(done.next32(), skipped.next32());
}

TEST(Sampler, SequentialIsTheReferences) {
    const Epoch epoch(settings(Sampling::sequential, 2, {6, 5}), 0);
    EXPECT_EQ(whole_batches(epoch, 2), (std::vector<Rows>{{{0, 3}, {0, 2}},
                                                          {{0, 5}, {0, 4}},
                                                          {{0, 1}, {0, 0}},
                                                          {{1, 2}, {1, 4}},
                                                          {{1, 0}, {1, 1}}}));
    const Epoch next(settings(Sampling::sequential, 2, {6, 5}), 1);
    EXPECT_EQ(whole_batches(next, 2), (std::vector<Rows>{{{0, 5}, {0, 1}},
                                                         {{0, 4}, {0, 2}},
                                                         {{0, 0}, {0, 3}},
                                                         {{1, 2}, {1, 0}},
                                                         {{1, 3}, {1, 1}}}));
}

TEST(Sampler, RandomChunkIsTheReferences) {
    const Epoch epoch(settings(Sampling::random_chunk, 2, {6, 5}), 0);
    EXPECT_EQ(whole_batches(epoch, 2), (std::vector<Rows>{{{1, 2}, {1, 4}},
                                                          {{1, 0}, {1, 1}},
                                                          {{0, 3}, {0, 2}},
                                                          {{0, 5}, {0, 4}},
                                                          {{0, 1}, {0, 0}}}));
}

// rows[rank::world] of every chunk before the shuffle: ours never deal rows like this, but the
// draws are the same.
TEST(Sampler, RankOneOfTwoIsTheReferences) {
    NumpyRandom random(42);
    std::vector<std::uint32_t> first{1, 3, 5};
    std::vector<std::uint32_t> second{1, 3};
    random.shuffle(first);
    random.shuffle(second);
    EXPECT_EQ(first[0], 5U);
    EXPECT_EQ(first[1], 3U);
    EXPECT_EQ(second, (std::vector<std::uint32_t>{1, 3}));
    EXPECT_EQ(random.permutation(2), (std::vector<std::uint32_t>{0, 1}));
}

TEST(Sampler, ThreeChunksAreTheReferences) {
    const Epoch sequential(settings(Sampling::sequential, 10, {30, 25, 40}), 0);
    std::vector<std::size_t> order;
    for (const Take& take : sequential.takes()) order.push_back(take.unit);
    EXPECT_EQ(order, (std::vector<std::size_t>{0, 1, 2}));
    const auto rows = sequential.rows(0);
    EXPECT_EQ(std::vector<std::uint32_t>(rows.begin(), rows.begin() + 10),
              (std::vector<std::uint32_t>{29, 16, 7, 25, 24, 22, 5, 21, 26, 10}));

    const Epoch random(settings(Sampling::random_chunk, 10, {30, 25, 40}), 0);
    std::vector<std::size_t> chosen;
    for (const Take& take : random.takes()) chosen.push_back(take.unit);
    EXPECT_EQ(chosen, (std::vector<std::size_t>{1, 2, 1, 0, 2, 2, 0, 2, 0, 1}));
    EXPECT_EQ(random.takes().back().count, 5);  // the reference drops these

    EXPECT_EQ(whole_batches(Epoch(settings(Sampling::sequential, 8, {20, 20, 20}), 0), 8).size(),
              6U);
}

TEST(Sampler, EveryEpochHoldsEveryRowOnceAndFollowsWithoutAGap) {
    for (const Sampling sampling : {Sampling::sequential, Sampling::random_chunk}) {
        const Sampler sampler(settings(sampling, 10, {30, 1, 25, 3}));
        const Rows two = tokens(sampler, {}, 118);
        ASSERT_EQ(two.size(), 118U);
        EXPECT_EQ(std::set(two.begin(), two.begin() + 59).size(), 59U);
        EXPECT_EQ(std::set(two.begin() + 59, two.end()).size(), 59U);
        EXPECT_FALSE(std::equal(two.begin(), two.begin() + 59, two.begin() + 59));
    }
}

TEST(Sampler, StartingAnywhereContinuesTheStream) {
    for (const Sampling sampling : {Sampling::sequential, Sampling::random_chunk}) {
        const Sampler sampler(settings(sampling, 4, {9, 5, 2}));
        const Rows all = tokens(sampler, {}, 48);
        for (Index start = 0; start < 32; ++start) {
            const Rows rest = tokens(sampler, {start / 16, start % 16}, 16);
            EXPECT_TRUE(std::equal(rest.begin(), rest.end(), all.begin() + start)) << start;
        }
    }
}

TEST(Sampler, InOrderMakesOnePass) {
    const Sampler sampler(settings(Sampling::in_order, 4, {2, 3}));
    EXPECT_EQ(tokens(sampler, {}, 100), (Rows{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {1, 2}}));
    EXPECT_TRUE(TakeStream(sampler, {0, 5}).done());
}

}  // namespace
}  // namespace clt
