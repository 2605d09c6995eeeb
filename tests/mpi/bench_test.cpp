// The step benchmark: its synthetic batch on every grid, its JSON.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "analyse/synthetic.hpp"
#include "clt/analyse/bench.hpp"
#include "clt/model/shape.hpp"
#include "support/test_backend.hpp"

namespace clt {
namespace {

TEST(Synthetic, TokensAreTheSameOnEveryGrid) {
    const Communicator world = Communicator::world();
    const ProcessGrid grid(world, 1, world.size());
    const Communicator self = world.split(world.rank(), 0);
    const ProcessGrid alone(self, 1, 1);
    const SyntheticBatch part(2, 7, 3, 5, grid);
    const SyntheticBatch whole(2, 7, 3, 5, alone);
    const HostBatch a = part.batch();
    const HostBatch b = whole.batch();
    ASSERT_EQ(a.slice, grid.token_slice(7));
    const auto offset = static_cast<std::size_t>(a.slice.begin * 15);
    for (std::size_t i = 0; i < a.inputs.size(); ++i) {
        EXPECT_EQ(a.inputs[i], b.inputs[offset + i]);
        EXPECT_EQ(a.targets[i], b.targets[offset + i]);
    }
}

TEST(Bench, PrintsOneObjectWithTheStepAndItsFloor) {
    const Communicator world = Communicator::world();
    const std::unique_ptr<Backend> backend = test::make_test_backend(world);
    BenchOptions options;
    options.layers = 3;
    options.d_model = 16;
    options.features = 50;
    options.k = 4;
    options.batch = 40;
    options.steps = 3;
    options.warmup = 1;
    const auto json = nlohmann::json::parse(bench_step(options, *backend, world));
    for (const char* key :
         {"step_s", "tokens_per_s", "floor_s", "ratio_to_floor", "peak_rss_bytes"})
        EXPECT_GT(json[key].get<double>(), 0) << key;
    EXPECT_FALSE(json["stages"].empty());
    for (const auto& [stage, seconds] : json["floor"].items())
        EXPECT_TRUE(json["stages"].contains(stage)) << stage << " has a floor but no time";
    EXPECT_EQ(json["parameters"], (Shape{3, 16, 50}.parameters()));
    EXPECT_EQ(json["ranks"], world.size());
    EXPECT_EQ(json["l0"], 4);
}

}  // namespace
}  // namespace clt
