// The cost model against numbers worked out by hand, and the memory limits of a host.
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "clt/base/error.hpp"
#include "clt/memory/available.hpp"
#include "clt/model/cost.hpp"
#include "clt/train/cost_query.hpp"
#include "model/selection.hpp"

namespace clt {
namespace {

/// L 2, d 4, F 8, batchtopk k 2, B 16. N = 3 decoders; parameters 2*8*5 + 8*4*3 + 2*4 = 184.
CostQuery small() {
    CostQuery query;
    query.shape = {2, 4, 8};
    query.model.activation = "batchtopk";
    query.model.features = 8;
    query.model.k = 2;
    query.batch_tokens = 16;
    query.tile = 4;
    return query;
}

Index bytes_of(const StepCost& cost, const std::string& purpose) {
    for (const MemoryUse& use : cost.memory)
        if (use.purpose == purpose) return use.bytes;
    ADD_FAILURE() << "no " << purpose;
    return -1;
}
Index sent(const StepCost& cost, const std::string& what) {
    for (const Traffic& traffic : cost.communication)
        if (traffic.what == what) return traffic.bytes;
    return 0;
}
const StageFloor& stage(const StepCost& cost, const std::string& name) {
    for (const StageFloor& floor : cost.stages)
        if (floor.stage == name) return floor;
    throw InternalError("no stage " + name);
}

TEST(Cost, OneRankByHand) {
    const StepCost cost = step_cost(small());
    EXPECT_EQ(cost.parameters, 184);
    EXPECT_EQ(bytes_of(cost, "parameters"), 4 * 184);
    EXPECT_EQ(bytes_of(cost, "optimiser moments"), 8 * 184);
    EXPECT_EQ(bytes_of(cost, "gradients"), 4 * (2 * 8 + 2 * 4));  // encoder and decoder biases
    // X, G, partial, error, target: [16, 8] each; and a host batch of inputs and targets.
    EXPECT_EQ(bytes_of(cost, "batches"), 4 * 16 * 8 * (5 + 2));
    EXPECT_EQ(bytes_of(cost, "data windows"), 0);
    // 32 entries: 16 bytes with an eighth of room; 17 row starts.
    EXPECT_EQ(bytes_of(cost, "active features"), 16 * (32 + 4) + 8 * 17);
    EXPECT_TRUE(cost.communication.empty());

    // 16 tokens, 2 layers, 8 features of width 4.
    EXPECT_EQ(stage(cost, "encode_select").flop, 2.0 * 16 * 2 * 8 * 4);
    EXPECT_EQ(stage(cost, "encode_select").bytes, 4.0 * (2 * 8 * 4 + 16 * 8));
    // 32 entries with rows of 8 and of 4: 6 on average. All decoder rows (96) once is less.
    EXPECT_EQ(stage(cost, "decode").flop, 2.0 * 32 * 6);
    EXPECT_EQ(stage(cost, "decode").bytes, 4.0 * 96 + 4 * 16 * 8);
    // Activation and row gradient, 12 flop an element for Adam; 24 bytes an element, G once.
    EXPECT_EQ(stage(cost, "decoder_rows").flop, 2 * 2.0 * 32 * 6 + 12 * 96);
    EXPECT_EQ(stage(cost, "decoder_rows").bytes, 24.0 * 96 + 4 * 16 * 8);
    EXPECT_EQ(stage(cost, "encoder_rows").flop, 2.0 * 32 * 4 + 12 * 64);
    EXPECT_EQ(stage(cost, "encoder_rows").bytes, 24.0 * 64 + 4 * 32 * 4);
}

TEST(Cost, ShardsDivideWeightsAndReplicasDoNot) {
    CostQuery query = small();
    query.feature_parts = 3;  // the largest shard has 3 of 8 features
    const StepCost shards = step_cost(query);
    EXPECT_EQ(bytes_of(shards, "parameters"), 4 * (2 * 3 * 5 + 3 * 4 * 3 + 8));
    query.feature_parts = 1;
    query.data_parts = 2;
    const StepCost replicas = step_cost(query);
    EXPECT_EQ(bytes_of(replicas, "parameters"), 4 * 184);
    // A replica encodes 8 tokens, and walks the rows for all 16.
    EXPECT_EQ(stage(replicas, "encode_select").flop, 2.0 * 8 * 2 * 8 * 4);
    EXPECT_EQ(stage(replicas, "decoder_rows").flop, stage(step_cost(small()), "decoder_rows").flop);
}

TEST(Cost, CommunicationByHand) {
    CostQuery query = small();
    query.feature_parts = 2;
    query.data_parts = 2;
    const StepCost cost = step_cost(query);
    const Index all = 4 * 16 * 8;  // bytes of [B, L d]
    EXPECT_EQ(sent(cost, "inputs"), all / 4 * 3);
    EXPECT_EQ(sent(cost, "residual gradients"), all / 4 * 3);
    EXPECT_EQ(sent(cost, "reconstructions"), all / 2 / 2);  // one replica's tokens, 2 shards
    // Scores: 11 + 11 + 10 bits; positions: 16 * 2 * 8 = 256 needs 9 bits.
    EXPECT_EQ(sent(cost, "selection histograms"), 2 * (8 * (2048 + 2048 + 1024 + 512) / 4 * 3));
    // Entries of this rank's 4 of 8 features over all tokens: 16, of 12 bytes; 2 * 4 + 1 starts.
    EXPECT_EQ(sent(cost, "active sets"), 12 * 16 / 2 + 8 * 9);
    EXPECT_EQ(sent(cost, "column statistics"), 0);
    query.model.ranking = "zscore";
    EXPECT_EQ(sent(step_cost(query), "column statistics"), 2 * (16 * 8 / 2));
}

TEST(Cost, DenseActivationsPayProducts) {
    CostQuery query = small();
    query.model.activation = "relu";
    query.model.k = 0;
    const StepCost cost = step_cost(query);
    const double encoder = 2.0 * 16 * 64;
    const double decoder = 2.0 * 16 * 96;
    EXPECT_EQ(stage(cost, "dense_decode").flop, encoder + decoder);
    EXPECT_EQ(stage(cost, "dense_rows").flop, 2 * encoder + 2 * decoder + 12 * 160);
    query.model.activation = "jumprelu";  // a threshold a feature more
    EXPECT_EQ(bytes_of(step_cost(query), "parameters"), 4 * (184 + 16));
}

TEST(Cost, FloorIsTheSlowerOfProductsAndTraffic) {
    const Machine machine{.gflops = 100, .gbytes_per_s = 10, .ranks = 2};
    EXPECT_DOUBLE_EQ(floor_s(StageFloor{"x", 5e9, 1e8}, machine), 0.1);  // 50 GFLOP/s a rank
    EXPECT_DOUBLE_EQ(floor_s(StageFloor{"x", 5e9, 1e9}, machine), 0.2);  // 5 GB/s a rank
    StepCost cost;
    const Machine mixed{.gflops = 100, .gbytes_per_s = 10, .float32_gflops = 25};
    EXPECT_DOUBLE_EQ(floor_s(StageFloor{"x", 6e9, 1e8, 5e9}, mixed), 0.05 + 0.04);
    cost.stages = {{"x", 5e9, 1e8}, {"y", 5e9, 1e9}};
    EXPECT_DOUBLE_EQ(floor_s(cost, machine), 0.3);
}

TEST(Cost, CudaKeepsItsOwnMemoryAndRoundedFactors) {
    CostQuery query = small();
    const StepCost cpu = step_cost(query);
    EXPECT_EQ(cpu.memory_bytes(true), 0);
    EXPECT_TRUE(cpu.kernels.empty());
    query.cuda = true;
    query.rounded = true;
    const StepCost cost = step_cost(query);
    EXPECT_EQ(bytes_of(cost, "parameters"), 4 * 184 + 2 * 64);
    // X, the next X, G, partial, error, target, the next target, and X in bfloat16: [16, 8] each.
    EXPECT_EQ(bytes_of(cost, "batches"), 4 * 16 * 8 * 7 + 2 * 16 * 8);
    EXPECT_EQ(bytes_of(cost, "batches on the host"), 4 * 16 * 8 * 2);
    EXPECT_EQ(stage(cost, "encode_select").bytes, 2.0 * (2 * 8 * 4 + 16 * 8));
    EXPECT_EQ(stage(cost, "encoder_rows").bytes, 26.0 * 64 + 4 * 32 * 4);

    // The kernels make the products and move the bytes of the floor, or more.
    double flop = 0;
    for (const StageFloor& floor : cost.stages) {
        double bytes = 0;
        for (const KernelCost& kernel : cost.kernels)
            if (kernel.stage == floor.stage) bytes += kernel.bytes, flop += kernel.flop;
        if (floor.stage == "decode" || floor.stage == "decoder_rows" ||
            floor.stage == "encoder_rows") {
            EXPECT_GE(bytes, floor.bytes) << floor.stage;
        }
    }
    EXPECT_EQ(flop, 2.0 * 16 * 2 * 8 * 4);
    EXPECT_EQ(stage(cost, "encode_select").encoder_flop, flop);
    EXPECT_EQ(stage(cost, "decode").encoder_flop, 0);
    query.communicator_bytes = 700'000'000;
    query.data_parts = 2;  // one axis: NCCL communicators of it and of all ranks
    EXPECT_EQ(bytes_of(step_cost(query), "NCCL"), 2 * 700'000'000);
    const KernelCost kernel{"s", "k", 2, 0.75e12, 0.9e9, 0};
    EXPECT_DOUBLE_EQ(expected_s(kernel, {1000, 1, 1}), 1 + 6e-6);
    EXPECT_DOUBLE_EQ(expected_s(kernel, {1000, 0.5, 1}), 2 + 6e-6);
}

TEST(CollectRule, OnlyWhatIsRankedHasScores) {
    ModelConfig model;
    model.ranking = "zscore";
    for (const bool ranked : {false, true})
        for (const char* activation :
             {ranked ? "batchtopk" : "relu", ranked ? "topk" : "jumprelu"}) {
            model.activation = activation;
            EXPECT_EQ(collect_rule(model).zscore, ranked) << activation;
        }
}

TEST(Cost, RefusesWhatDoesNotFit) {
    StepCost cost;
    cost.memory = {{"parameters", 3'000'000'000, "lower a or d"},
                   {"workspace", 1'000'000, "lower b"},
                   {"optimiser moments", 6'000'000'000, "lower a"},
                   {"batches", 1'000'000'000, "lower c"}};
    check_memory(cost, 20'002'000'000, 2);  // 10.001 GB each: just enough
    try {
        check_memory(cost, 16'000'000'000, 2);
        FAIL() << "nothing thrown";
    } catch (const UserError& e) {
        EXPECT_STREQ(e.what(),
                     "a rank needs 10 GB of memory (optimiser moments 6 GB, parameters 3 GB, "
                     "batches 1 GB), but the host has 8 GB for each of its 2 ranks; lower a or d, "
                     "or lower c");
    }
    cost.memory[0].smaller = "lower a or d";  // says the other "lower a" too
    try {
        check_memory(cost, 16'000'000'000, 2);
        FAIL() << "nothing thrown";
    } catch (const UserError& e) {
        EXPECT_TRUE(std::string(e.what()).ends_with("; lower a or d, or lower c")) << e.what();
    }
    cost.memory[0].smaller = "lower a";
    cost.memory[0].on_device = true;
    check_memory(cost, 3'000'000'000, 1, /*on_device=*/true);
    try {
        check_memory(cost, 2'000'000'000, 1, /*on_device=*/true);
        FAIL() << "nothing thrown";
    } catch (const UserError& e) {
        EXPECT_STREQ(e.what(),
                     "a rank needs 3 GB of memory (parameters 3 GB), but the GPU has 2 GB for each "
                     "of its 1 rank; lower a");
    }
}

TEST(Cost, QueryOfAJob) {
    TrainJob job;
    job.model.features = 64;
    job.data.batch_tokens = 128;
    job.data.window_tokens = 0;
    DataShape data{3, 16, 10'000, 4'000, 2};
    EXPECT_EQ(cost_query(job, data, 1, 2).shape, (Shape{3, 16, 64}));
    EXPECT_EQ(cost_query(job, data, 1, 2).window_tokens, 4'000);  // whole chunks
    job.data.window_tokens = 1'000;
    EXPECT_EQ(cost_query(job, data, 1, 2).window_tokens, 1'000);
    job.data.window_tokens = 9'000;
    EXPECT_EQ(cost_query(job, data, 1, 2).window_tokens, 4'000);
    EXPECT_EQ(cost_query(job, data, 1, 2).element_bytes, 2);
}

TEST(Cost, SizesThatDoNotFitAreRefusedInWords) {
    const auto refusal = [](auto change) {
        CostQuery query = small();
        change(query);
        try {
            step_cost(query);
        } catch (const UserError& e) {
            return std::string(e.what());
        }
        return std::string("nothing thrown");
    };
    constexpr Index huge = std::numeric_limits<Index>::max();
    EXPECT_EQ(refusal([](CostQuery& q) { q.shape.layers = huge; }),
              "layers x features is 9223372036854775807 x 8: more than 2147483647, beyond which "
              "nothing is counted here");
    EXPECT_EQ(refusal([](CostQuery& q) {
                  q.shape.d_model = huge;
              }).find("features x d_model x layers x layers is 8 x 9223372036854775807 x 2 x 2"),
              0U);
    EXPECT_EQ(refusal([](CostQuery& q) { q.batch_tokens = huge; }).find("batch tokens x layers"),
              0U);
    EXPECT_EQ(refusal([](CostQuery& q) { q.window_tokens = huge; }).find("window tokens"), 0U);
    for (const double k : {17.0, 1e17, 1e300})
        EXPECT_NE(refusal([=](CostQuery& q) {
                      q.model.k = k;
                  }).find("expected at most 16, the 2 layers times 8 features"),
                  std::string::npos)
            << k;
    EXPECT_NE(refusal([](CostQuery& q) { q.model.k = 0.06; }).find("keeps no entry at all"),
              std::string::npos);
    EXPECT_EQ(refusal([](CostQuery& q) { q.model.k = 0.0625; }), "nothing thrown");
    EXPECT_EQ(refusal([](CostQuery& q) {
                  q.model.activation = "relu";
                  q.model.k = 0;
              }),
              "nothing thrown");
}

TEST(Cost, ProductsThatDoNotFitAreAbsent) {
    constexpr Index huge = std::numeric_limits<Index>::max();
    EXPECT_EQ(product_within(100, {4, 5, 5}), 100);
    EXPECT_EQ(product_within(99, {4, 5, 5}), std::nullopt);
    EXPECT_EQ(product_within(huge, {huge, huge}), std::nullopt);
    EXPECT_EQ(product_within(huge, {0, huge}), 0);
    EXPECT_EQ(product_within(huge, {huge, 1}), huge);
}

// The copy that a checkpoint is written from: replicas share it.
TEST(Cost, ACheckpointsCopyIsAPurposeOfItsOwn) {
    CostQuery query = small();
    query.keeps_checkpoint_copy = true;
    EXPECT_EQ(bytes_of(step_cost(query), "a checkpoint's copy"), 12 * 184 + 8 * 2 * 8);
    query.data_parts = 2;
    EXPECT_EQ(bytes_of(step_cost(query), "a checkpoint's copy"), (12 * 184 + 8 * 2 * 8) / 2);
}

/// A /proc and /sys of our own.
class FakeHost {
  public:
    FakeHost()
        : root_(std::filesystem::temp_directory_path() /
                ("clt_cost_test_" + std::to_string(::getpid()))) {
        std::filesystem::remove_all(root_);
    }
    ~FakeHost() { std::filesystem::remove_all(root_); }
    void write(const std::string& path, const std::string& text) const {
        std::filesystem::create_directories(
            (root_.string() + path).substr(0, (root_.string() + path).rfind('/')));
        std::ofstream(root_.string() + path) << text;
    }
    std::string root() const { return root_.string(); }

  private:
    std::filesystem::path root_;
};

TEST(Available, TheLeastOfHostAndCgroups) {
    const FakeHost host;
    EXPECT_THROW(available_host_bytes(host.root()), LibraryError);
    host.write("/proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:    2000 kB\n");
    EXPECT_EQ(available_host_bytes(host.root()), 2000 * 1024);

    // Version 2: no limit at the job's group, one above it; dropped pages count as free.
    host.write("/proc/self/cgroup", "0::/jobs/17\n");
    host.write("/sys/fs/cgroup/jobs/17/memory.max", "max\n");
    host.write("/sys/fs/cgroup/jobs/17/memory.current", "500\n");
    EXPECT_EQ(available_host_bytes(host.root()), 2000 * 1024);
    host.write("/sys/fs/cgroup/jobs/memory.max", "1000000\n");
    host.write("/sys/fs/cgroup/jobs/memory.current", "400000\n");
    host.write("/sys/fs/cgroup/jobs/memory.stat", "anon 300000\ninactive_file 50000\n");
    EXPECT_EQ(available_host_bytes(host.root()), 650'000);

    // Version 1.
    host.write("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/slurm\n");
    host.write("/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "900000\n");
    host.write("/sys/fs/cgroup/memory/slurm/memory.usage_in_bytes", "100000\n");
    EXPECT_EQ(available_host_bytes(host.root()), 800'000);
}

TEST(Available, ThisHost) {
    EXPECT_GT(available_host_bytes(), 1'000'000);
}

}  // namespace
}  // namespace clt
