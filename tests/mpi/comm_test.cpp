#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "clt/comm/collectives.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

TEST(Communicator, ReducesGathersAndBroadcasts) {
    const Communicator world = Communicator::world();
    const int n = world.size();
    EXPECT_EQ(world.all_reduce_sum(std::int64_t{world.rank() + 1}), n * (n + 1) / 2);
    EXPECT_EQ(world.all_reduce_max(double(world.rank())), n - 1);
    EXPECT_EQ(world.exclusive_sum(world.rank()), world.rank() * (world.rank() - 1) / 2);
    const std::string text =
        world.broadcast(world.rank() == n - 1 ? std::string("last\0one", 8) : std::string(), n - 1);
    EXPECT_EQ(text, std::string("last\0one", 8));
    const std::vector<int> ranks = world.all_gather(world.rank());
    for (int r = 0; r < n; ++r) EXPECT_EQ(ranks[static_cast<std::size_t>(r)], r);
}

TEST(Communicator, AllToAllMovesUnevenBlocks) {
    const Communicator world = Communicator::world();
    const int n = world.size();
    std::vector<Index> send_bytes;
    std::vector<Index> receive_bytes;
    std::vector<std::byte> send;
    for (int r = 0; r < n; ++r) {
        send_bytes.push_back(world.rank() * r);  // also empty blocks
        receive_bytes.push_back(world.rank() * r);
        send.insert(send.end(), static_cast<std::size_t>(world.rank() * r),
                    std::byte(16 * world.rank() + r));
    }
    std::vector<std::byte> receive(static_cast<std::size_t>(
        std::accumulate(receive_bytes.begin(), receive_bytes.end(), Index{0})));
    world.all_to_all(send.data(), send_bytes, receive.data(), receive_bytes);
    std::size_t at = 0;
    for (int r = 0; r < n; ++r)
        for (Index i = 0; i < receive_bytes[static_cast<std::size_t>(r)]; ++i, ++at)
            EXPECT_EQ(receive[at], std::byte(16 * r + world.rank()));
}

TEST(Communicator, ThrowTogetherGivesEveryRankTheFirstFailure) {
    const Communicator world = Communicator::world();
    try {
        world.together([&] {
            if (world.rank() == world.size() - 1) user_error("rank {} found no file", world.rank());
        });
        FAIL() << "nothing was thrown";
    } catch (const UserError& e) {
        EXPECT_EQ(std::string(e.what()), fmt::format("rank {} found no file", world.size() - 1));
    }
    world.together([] {});
}

TEST(ProcessGrid, FeatureIndexVariesFastestAndSlicesTileTheBatch) {
    const Communicator world = Communicator::world();
    for (int feature = 1; feature <= world.size(); ++feature) {
        if (world.size() % feature != 0) {
            EXPECT_THROW(ProcessGrid(world, world.size() / feature, feature), UserError);
            continue;
        }
        const ProcessGrid grid(world, world.size() / feature, feature);
        EXPECT_EQ(world.rank(), grid.data_index() * feature + grid.feature_index());
        for (const Index n : {0, 1, 5, 33}) {
            Index at = 0;
            for (int r = 0; r < world.size(); ++r) {
                EXPECT_EQ(grid.token_slice(n, r).begin, at);
                at = grid.token_slice(n, r).end;
            }
            EXPECT_EQ(at, n);
        }
    }
}

TEST(Collectives, ReduceScatterAndAllGatherWithUnevenAndEmptyBlocks) {
    const Communicator world = Communicator::world();
    const auto collectives = make_mpi_collectives(world);
    const int n = world.size();
    std::vector<Index> counts;
    for (int r = 0; r < n; ++r) counts.push_back(r == 1 ? 0 : r + 3);
    const Index total = std::accumulate(counts.begin(), counts.end(), Index{0});
    std::vector<float> in(static_cast<std::size_t>(total));
    for (std::size_t i = 0; i < in.size(); ++i)
        in[i] = static_cast<float>(i) + static_cast<float>(world.rank());
    std::vector<float> own(
        static_cast<std::size_t>(counts[static_cast<std::size_t>(world.rank())]));
    collectives->reduce_scatter_sum(as_span(std::span<const float>(in)),
                                    as_span(std::span<float>(own)), counts);
    std::vector<float> all(static_cast<std::size_t>(total));
    collectives->all_gather(as_span(std::span<const float>(own)), as_span(std::span<float>(all)),
                            counts);
    const float ranks = static_cast<float>(n * (n - 1) / 2);
    for (std::size_t i = 0; i < all.size(); ++i)
        EXPECT_EQ(all[i], static_cast<float>(n) * static_cast<float>(i) + ranks);
}

TEST(Communicator, AllArriveWithinTellsWhoIsMissing) {
    const Communicator world = Communicator::world();
    EXPECT_TRUE(world.duplicate().all_arrive_within(60));
    if (world.size() == 1) return;
    // Never freed: after a timeout its barrier is still under way, and a real run aborts.
    const Communicator& meeting = *new Communicator(world.duplicate());
    if (world.rank() == 0) {
        EXPECT_FALSE(meeting.all_arrive_within(0.02));  // the others wait in the barrier below
    }
    world.barrier();
    if (world.rank() != 0) {
        EXPECT_TRUE(meeting.all_arrive_within(60));
    }
}

}  // namespace
}  // namespace clt
