// From files to results: clt train and clt evaluate on an activation data set, on grids of ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "analyse/synthetic.hpp"
#include "clt/analyse/evaluate.hpp"
#include "clt/data/writer.hpp"
#include "clt/io/file.hpp"
#include "clt/train/checkpoint.hpp"
#include "clt/train/trainer.hpp"
#include "support/scratch.hpp"
#include "support/test_backend.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::Scratch;

constexpr Index layers = 3;
constexpr Index d_model = 8;
constexpr Index features = 13;  // no number of shards divides them
const std::vector<Index> chunk_rows = {150, 90};

void write_set(const std::string& folder, const Communicator& world, Index width = d_model) {
    DatasetWriter writer({.folder = folder,
                          .model_name = "none",
                          .dataset = "synthetic",
                          .split = "train",
                          .layers = layers,
                          .d_model = width,
                          .chunk_tokens = 150,
                          .seed = 3},
                         world);
    const ProcessGrid grid(world, 1, world.size());
    for (std::size_t chunk = 0; chunk < chunk_rows.size(); ++chunk) {
        const SyntheticBatch made(static_cast<Index>(chunk), chunk_rows[chunk], layers, width,
                                  grid);
        const HostBatch batch = made.batch();
        std::vector<float> rows;  // [n, L, 2, d]
        for (Index at = 0; at < batch.slice.size() * layers; ++at) {
            const auto from = static_cast<std::size_t>(at * width);
            const auto count = static_cast<std::size_t>(width);
            for (const std::span<const float>& side : {batch.inputs, batch.targets}) {
                const auto part = side.subspan(from, count);
                rows.insert(rows.end(), part.begin(), part.end());
            }
        }
        writer.write_chunk(rows, "");
    }
    writer.finish();
}

class TrainEvaluateTest : public testing::Test {
  protected:
    void SetUp() override { write_set(data_, world_); }

    TrainJob train_job(const std::string& output) const {
        TrainJob job;
        job.job.output = output;
        job.data.path = data_;
        job.data.batch_tokens = 24;  // 192 training tokens: 8 batches an epoch
        job.data.holdout_fraction = 0.2;
        job.model.features = features;
        job.model.k = 6;
        job.schedule.steps = 33;
        job.optimizer.learning_rate = 1e-2;
        job.checkpoint.interval = 13;  // in the middle of the second epoch
        job.log.interval = 1;
        return job;
    }

    EvaluateJob evaluate_job(const std::string& checkpoint) const {
        EvaluateJob job;
        job.job.output = scratch_ / "evaluation";
        job.data = train_job("").data;
        job.evaluate.checkpoint = checkpoint;
        return job;
    }

    int run(const TrainJob& job, const Communicator& ranks, bool resume = false) {
        const std::unique_ptr<Backend> backend = test::make_test_backend(ranks);
        TrainOptions options;
        options.resolved_job = "the job";
        options.resume = resume;
        options.differences = [](const std::string&, const std::string&) {
            return std::vector<FieldChange>();
        };
        return train(job, options, *backend, ranks, workers_);
    }

    Evaluation judge(const EvaluateJob& job, const Communicator& ranks) {
        const std::unique_ptr<Backend> backend = test::make_test_backend(ranks);
        return evaluate(job, *backend, ranks, workers_);
    }

    /// Runs `work(ranks)` on the first n ranks; the others wait.
    template <class Work>
    void on_first(int n, Work work) {
        const Communicator ranks = world_.split(world_.rank() < n ? 0 : 1, world_.rank());
        if (world_.rank() < n) work(ranks);
        world_.barrier();
    }

    static std::vector<double> losses(const std::string& folder) {
        std::vector<double> values;
        std::ifstream file(folder + "/metrics.jsonl");
        for (std::string line; std::getline(file, line);) {
            const auto record = nlohmann::json::parse(line);
            EXPECT_EQ(record["step"], static_cast<Index>(values.size()) + 1);
            values.push_back(record["loss"]);
        }
        return values;
    }

    /// A copy of a complete run as it was when step 13 was saved, but for metrics.jsonl, which went
    /// on: what a crash leaves.
    void copy_crashed(const std::string& from, const std::string& to) {
        if (world_.rank() == 0) {
            fs::copy(from, to, fs::copy_options::recursive);
            fs::remove(to + "/checkpoints/step_26.h5");
            fs::remove(to + "/checkpoints/step_33.h5");
            fs::remove(to + "/results.json");
        }
        world_.barrier();
    }

    Communicator world_ = Communicator::world();
    Workers workers_;
    Scratch scratch_{world_};
    std::string data_ = scratch_ / "data";
};

// Its feature would never be active, and the figures those of a model without it.
TEST_F(TrainEvaluateTest, ANumberThatIsNotFiniteIsNotSaved) {
    const std::string folder = scratch_ / "run";
    ASSERT_EQ(run(train_job(folder), world_), 0);
    const std::string whole = folder + "/checkpoints/step_33.h5";
    {
        const std::unique_ptr<Backend> backend = test::make_test_backend(world_);
        const ProcessGrid grid(world_, 1, world_.size());
        const CheckpointHeader info = read_checkpoint_header(whole, world_);
        Params params(*backend, info.shape, grid.feature_shard(features), info.model, 0);
        read_checkpoint(info, *backend, grid, params, Span<Index>(), /*moments=*/false);
        const float bad = std::nanf("");
        if (world_.rank() == 0)
            backend->upload(std::span(&bad, 1), params.encoder(1).value.elements.subspan(5, 1));
        Buffer<Index> silence(backend->memory(), params.local_rows(), Purpose::workspace);
        backend->zero(silence.span());
        CheckpointSnapshot snapshot;
        snapshot.take(*backend, grid, params, silence.span(), info.model, info.state);
        world_.together([&] {
            if (world_.rank() == 0) fs::create_directories(scratch_ / "spoiled");
        });
        const std::string message = message_of<UserError>(
            [&] { write_checkpoint(scratch_ / "spoiled", snapshot, grid.all()); });
        EXPECT_NE(message.find("encoder/layer_1/weight"), std::string::npos) << message;
        EXPECT_NE(message.find("is NaN or infinite in row 0, column 5"), std::string::npos)
            << message;
        EXPECT_TRUE(fs::is_empty(scratch_ / "spoiled"));
    }
}

TEST_F(TrainEvaluateTest, ResumesInTheMiddleOfAnEpoch) {
    const std::string straight = scratch_ / "straight";
    ASSERT_EQ(run(train_job(straight), world_), 0);
    const std::vector<double> expected = losses(straight);
    ASSERT_EQ(expected.size(), 33U);

    copy_crashed(straight, scratch_ / "same_grid");
    EXPECT_EQ(run(train_job(scratch_ / "same_grid"), world_, /*resume=*/true), 0);
    EXPECT_EQ(losses(scratch_ / "same_grid"), expected);

    for (int ranks = 1; ranks < world_.size(); ++ranks) {
        const std::string folder = scratch_ / fmt::format("on_{}", ranks);
        copy_crashed(straight, folder);
        on_first(ranks, [&](const Communicator& part) {
            EXPECT_EQ(run(train_job(folder), part, /*resume=*/true), 0);
        });
        const std::vector<double> actual = losses(folder);
        ASSERT_EQ(actual.size(), expected.size());
        for (std::size_t i = 0; i < expected.size(); ++i)
            // Float32 sums in another order: the grid's 1e-5 relative.
            EXPECT_TRUE(std::abs(actual[i] - expected[i]) <= 1e-5 * expected[i])
                << ranks << " ranks, step " << i + 1;
    }
}

TEST_F(TrainEvaluateTest, EvaluateAgreesWithTheTrainerOnEveryGrid) {
    const std::string folder = scratch_ / "run";
    ASSERT_EQ(run(train_job(folder), world_), 0);
    const auto trained = nlohmann::json::parse(read_file(folder + "/results.json"))["evaluation"];
    EXPECT_EQ(trained["tokens"], 48);  // a fifth of 150 and of 90
    const EvaluateJob job = evaluate_job(folder + "/checkpoints");
    const Evaluation same = judge(job, world_);
    EXPECT_EQ(nlohmann::json::parse(to_json(same)), trained);
    const auto results = nlohmann::json::parse(read_file(scratch_ / "evaluation/results.json"));
    EXPECT_EQ(results["nmse"], trained["nmse"]);
    EXPECT_EQ(results["step"], 33);
    EXPECT_EQ(results["l0_per_layer"].size(), 3U);
    world_.barrier();

    on_first(1, [&](const Communicator& alone) {
        const Evaluation other = judge(job, alone);
        EXPECT_NEAR(other.nmse, same.nmse, 1e-5 * same.nmse);
        EXPECT_EQ(other.l0, same.l0);
    });
}

TEST_F(TrainEvaluateTest, AllRowsAreMoreThanTheHeldOutOnes) {
    const std::string folder = scratch_ / "run";
    ASSERT_EQ(run(train_job(folder), world_), 0);
    EvaluateJob job = evaluate_job(folder + "/checkpoints/step_33.h5");
    job.evaluate.rows = "all";
    EXPECT_EQ(judge(job, world_).tokens, 240);
    job.evaluate.tokens = 100;
    EXPECT_EQ(judge(job, world_).tokens, 100);
}

TEST_F(TrainEvaluateTest, RefusesWhatDoesNotFitTheCheckpoint) {
    const std::string folder = scratch_ / "run";
    TrainJob train_it = train_job(folder);
    train_it.schedule.steps = 2;
    ASSERT_EQ(run(train_it, world_), 0);

    write_set(scratch_ / "wide", world_, 10);
    EvaluateJob wide = evaluate_job(folder + "/checkpoints");
    wide.data.path = scratch_ / "wide";
    std::string message = message_of<UserError>([&] { judge(wide, world_); });
    EXPECT_NE(message.find("width 10"), std::string::npos) << message;
    EXPECT_NE(message.find("width 8"), std::string::npos) << message;

    EvaluateJob nothing = evaluate_job(folder + "/checkpoints");
    nothing.data.holdout_fraction = 0;
    message = message_of<UserError>([&] { judge(nothing, world_); });
    EXPECT_NE(message.find("nothing is held out"), std::string::npos) << message;

    const EvaluateJob nowhere = evaluate_job(folder);
    message = message_of<UserError>([&] { judge(nowhere, world_); });
    EXPECT_NE(message.find("no whole checkpoint"), std::string::npos) << message;
}

}  // namespace
}  // namespace clt
