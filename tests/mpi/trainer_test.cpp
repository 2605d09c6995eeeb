// The trainer on grids of ranks: the same losses on every grid, resume, signals, what stays on
// disk. Batches come from memory; tests/e2e trains on files.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "clt/base/stop.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/model/step.hpp"
#include "support/replay_source.hpp"
#include "support/scratch.hpp"
#include "support/test_backend.hpp"
#include "train/run.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::ReplaySource;
using test::Scratch;

constexpr Index batch_tokens = 24;
const Shape shape{3, 8, 13};  // 13 features: no number of shards divides them

struct Grid {
    int data;
    int feature;
};

// The settings of these tests are one line "key = value"; those of schedule are free.
std::vector<FieldChange> differing_line(const std::string& stored, const std::string& now) {
    if (stored == now) return {};
    const std::string key = now.substr(0, now.find(" = "));
    const auto value = [](const std::string& line) { return line.substr(line.find(" = ") + 3); };
    return {
        {key, key.starts_with("schedule") ? Role::free : Role::input, value(stored), value(now)}};
}

TrainJob small_job(Index steps) {
    TrainJob job;
    job.job.kind = "train";
    job.data.batch_tokens = batch_tokens;
    job.model.features = shape.features;
    job.model.k = 6;
    job.schedule.steps = steps;
    job.optimizer.learning_rate = 1e-2;
    job.loss.sparsity = 1e-3;
    job.evaluation.interval = 10;
    job.checkpoint.interval = 0;
    job.log.interval = 1;
    return job;
}

// What a test changes in a run.
struct Variation {
    bool resume = false;
    std::optional<Index> resume_step;
    std::string fork;
    bool fresh_optimizer = false;
    std::string settings = "model.features = 13";
    ReplaySource::Hook hook;
    ReplaySource::Spoil spoil;
    bool held_out = true;
    ReplaySource::Hook held_out_hook;
};

class TrainerTest : public testing::Test {
  protected:
    /// Trains in `folder` on the first ranks of the world, which form `grid`; the others wait.
    /// Returns the exit code everywhere.
    int run(const std::string& folder, const TrainJob& job, Grid grid,
            const Variation& variation = {}) {
        const int ranks = grid.data * grid.feature;
        const Communicator part = world_.split(world_.rank() < ranks ? 0 : 1, world_.rank());
        int code = 0;
        std::exception_ptr failure;
        if (world_.rank() < ranks) {
            try {
                code = run_on(part, folder, job, grid, variation);
            } catch (const UserError&) {
                failure = std::current_exception();  // the same on all ranks of `part`
            }
        }
        world_.throw_together(failure);
        return world_.broadcast(code);
    }

    /// loss of each step in metrics.jsonl, which must hold steps 1, 2, ... in order.
    std::vector<double> losses(const std::string& folder) {
        std::vector<double> values;
        for (const nlohmann::json& record : records(folder)) {
            EXPECT_EQ(record["step"], static_cast<Index>(values.size()) + 1);
            values.push_back(record["loss"].is_null() ? std::nan("")
                                                      : record["loss"].get<double>());
        }
        return values;
    }

    std::vector<nlohmann::json> records(const std::string& folder) {
        std::vector<nlohmann::json> all;
        std::ifstream file(folder + "/metrics.jsonl");
        for (std::string line; std::getline(file, line);)
            all.push_back(nlohmann::json::parse(line));
        return all;
    }

    std::vector<std::string> checkpoints(const std::string& folder) {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(folder + "/checkpoints"))
            names.push_back(entry.path().filename());
        std::sort(names.begin(), names.end());
        return names;
    }

    /// What a signal to one rank does, when batch `number` is fetched.
    static ReplaySource::Hook signal_at(Index number, bool here) {
        return [=](Index batch) {
            if (here && batch == number) request_stop();
        };
    }

    bool fits(Grid grid) const { return grid.data * grid.feature <= world_.size(); }
    Grid whole_world() const { return {1, world_.size()}; }

    Communicator world_ = Communicator::world();
    Workers workers_;
    Scratch scratch_{world_};

  private:
    int run_on(const Communicator& part, const std::string& folder, TrainJob job, Grid shape_,
               const Variation& variation) {
        forget_stop_request();
        const std::unique_ptr<Backend> backend = test::make_test_backend(part);
        const ProcessGrid grid(part, shape_.data, shape_.feature);
        TrainOptions options;
        options.resolved_job = variation.settings;
        options.resume = variation.resume || variation.resume_step;
        options.resume_step = variation.resume_step;
        options.fork = variation.fork;
        options.fresh_optimizer = variation.fresh_optimizer;
        options.differences = differing_line;
        job.job.output = folder;
        const Shape model{shape.layers, shape.d_model, job.model.features};
        const RunFolder run_folder = open_run_folder(job, model, options, grid.all());
        RunSources sources;
        auto training = std::make_unique<ReplaySource>(shape, batch_tokens, true, grid);
        training->hook = variation.hook;
        training->spoil = variation.spoil;
        sources.training = std::move(training);
        if (variation.held_out) {
            auto held_out = std::make_unique<ReplaySource>(shape, batch_tokens, false, grid);
            held_out->hook = variation.held_out_hook;
            sources.evaluation = std::move(held_out);
        }
        return run_training(job, options, run_folder, std::move(sources), *backend, grid, workers_);
    }
};

void expect_close(const std::vector<double>& actual, const std::vector<double>& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i)
        // Done-when of the grid: float32 sums in another order, 1e-5 relative over 50 steps.
        EXPECT_TRUE(std::abs(actual[i] - expected[i]) <= 1e-5 * expected[i])
            << "step " << i + 1 << ": " << actual[i] << " against " << expected[i];
}

const std::vector<Grid> all_grids = {{1, 1}, {1, 2}, {2, 1}, {2, 2}, {1, 3}, {4, 1}, {1, 4}};

// A number that depends on every parameter, its bits and its global place, but not on the shards.
std::uint64_t fingerprint(Params& params, Backend& backend, const ProcessGrid& grid) {
    std::uint64_t sum = 0;
    for (const ParamArray& array : params.arrays()) {
        const bool replicated = array.rows.value.rows == array.global_rows;
        if (grid.data_index() != 0 || (replicated && grid.feature_index() != 0)) continue;
        const Matrix<float>& m = array.rows.value;
        std::vector<float> host(static_cast<std::size_t>(m.rows * m.cols));
        backend.download(Span<const float>(m.elements), std::span<float>(host));
        for (std::size_t i = 0; i < host.size(); ++i) {
            const std::uint64_t place = std::hash<std::string>()(array.name) +
                                        static_cast<std::uint64_t>(array.first_row * m.cols) + i;
            sum += (std::bit_cast<std::uint32_t>(host[i]) + 1) * (2 * place + 1) *
                   0x9E3779B97F4A7C15ULL;
        }
    }
    return grid.all().all_reduce_sum(sum);
}

TEST_F(TrainerTest, EveryGridStartsFromTheSameBits) {
    std::uint64_t expected = 0;
    for (const Grid& g : all_grids) {
        if (!fits(g)) continue;
        const Communicator part =
            world_.split(world_.rank() < g.data * g.feature ? 0 : 1, world_.rank());
        std::uint64_t sum = 0;
        if (world_.rank() < g.data * g.feature) {
            const std::unique_ptr<Backend> backend = test::make_test_backend(part);
            const ProcessGrid grid(part, g.data, g.feature);
            ModelConfig model;
            model.features = shape.features;
            Params params(*backend, shape, grid.feature_shard(shape.features), model, 42);
            sum = fingerprint(params, *backend, grid);
        }
        sum = world_.broadcast(sum);
        if (expected == 0) expected = sum;
        EXPECT_EQ(sum, expected) << g.data << "x" << g.feature;
    }
}

TEST_F(TrainerTest, EveryGridFollowsTheSameLosses) {
    const TrainJob job = small_job(50);
    std::vector<double> expected;
    nlohmann::json first;
    for (const Grid& grid : all_grids) {
        if (!fits(grid)) continue;
        SCOPED_TRACE(fmt::format("grid {}x{}", grid.data, grid.feature));
        const std::string folder = scratch_ / fmt::format("{}x{}", grid.data, grid.feature);
        EXPECT_EQ(run(folder, job, grid), 0);
        const std::vector<nlohmann::json> all = records(folder);
        if (expected.empty()) {
            expected = losses(folder);
            first = all.front();
            ASSERT_EQ(expected.size(), 50U);
            EXPECT_LT(expected.back(), 0.9 * expected.front());  // it learns
        } else {
            expect_close(losses(folder), expected);
            // The same features are chosen.
            EXPECT_EQ(all.front()["l0_per_layer"], first["l0_per_layer"]);
            EXPECT_EQ(all.front()["threshold"], first["threshold"]);
        }
    }
}

TEST_F(TrainerTest, ARunRepeatsBitForBit) {
    const TrainJob job = small_job(12);
    run(scratch_ / "a", job, whole_world());
    run(scratch_ / "b", job, whole_world());
    EXPECT_EQ(losses(scratch_ / "a"), losses(scratch_ / "b"));
}

// Step 13 lies in the middle of the third epoch of 5 batches.
TEST_F(TrainerTest, ASignalThenResumeEqualsAnUninterruptedRun) {
    const TrainJob job = small_job(33);
    ASSERT_EQ(run(scratch_ / "straight", job, whole_world()), 0);
    const std::string folder = scratch_ / "signalled";
    Variation variation;
    variation.resume = true;  // a requeued job always passes it, the first time too
    variation.hook = signal_at(12, world_.rank() == world_.size() - 1);
    EXPECT_EQ(run(folder, job, whole_world(), variation), exit_interrupted);
    EXPECT_EQ(losses(folder).size(), 13U);
    EXPECT_FALSE(fs::exists(folder + "/results.json"));
    variation.hook = nullptr;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder), losses(scratch_ / "straight"));

    const auto straight = records(scratch_ / "straight");
    const auto resumed = records(folder);
    ASSERT_EQ(resumed.size(), straight.size());
    for (std::size_t i = 0; i < straight.size(); ++i) {
        for (const char* key : {"learning_rate", "lambda", "l0_per_layer", "nmse", "tokens",
                                "dead_features_per_layer"})
            EXPECT_EQ(resumed[i][key], straight[i][key]) << key << " of step " << i + 1;
        EXPECT_EQ(resumed[i].contains("evaluation"), straight[i].contains("evaluation"));
        if (straight[i].contains("evaluation")) {
            EXPECT_EQ(resumed[i]["evaluation"], straight[i]["evaluation"]) << i + 1;
        }
    }
}

TEST_F(TrainerTest, ACheckpointGoesOnOnAnotherGrid) {
    const TrainJob job = small_job(33);
    const Grid before = world_.size() >= 4 ? Grid{2, 2} : whole_world();
    ASSERT_EQ(run(scratch_ / "straight", job, before), 0);
    for (const Grid& after : all_grids) {
        if (!fits(after)) continue;
        SCOPED_TRACE(fmt::format("resumed on {}x{}", after.data, after.feature));
        const std::string folder = scratch_ / fmt::format("on_{}x{}", after.data, after.feature);
        Variation variation;
        variation.resume = true;
        variation.hook = signal_at(12, world_.rank() == 0);
        ASSERT_EQ(run(folder, job, before, variation), exit_interrupted);
        variation.hook = nullptr;
        EXPECT_EQ(run(folder, job, after, variation), 0);
        expect_close(losses(folder), losses(scratch_ / "straight"));
    }
}

// A crash loses the steps since the last checkpoint; the resumed run makes them again.
TEST_F(TrainerTest, ACrashLosesNoStepAndRepeatsNone) {
    TrainJob job = small_job(25);
    job.checkpoint.interval = 10;
    ASSERT_EQ(run(scratch_ / "straight", job, whole_world()), 0);
    Variation variation;
    variation.hook = [](Index batch) {
        if (batch == 17) user_error("the plug was pulled");
    };
    const std::string folder = scratch_ / "crashed";
    EXPECT_EQ(message_of<UserError>([&] { run(folder, job, whole_world(), variation); }),
              "the plug was pulled");
    EXPECT_EQ(losses(folder).size(), 17U);
    variation.hook = nullptr;
    variation.resume = true;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder), losses(scratch_ / "straight"));
}

TEST_F(TrainerTest, AnErrorInDataOrJudgingKeepsTheStateAndTheRecords) {
    TrainJob job = small_job(25);
    job.checkpoint.interval = 8;
    job.evaluation.interval = 5;
    job.checkpoint.keep = 100;
    ASSERT_EQ(run(scratch_ / "straight", job, whole_world()), 0);
    const auto straight = records(scratch_ / "straight");

    // The data fails behind step 11; judging fails at step 10, which has no checkpoint of its own,
    // and at step 16, which has one.
    struct Fault {
        const char* name;
        Index step;
        ReplaySource::Hook training, judging;
    };
    int passes = 0;
    const auto fail_in_pass = [&](int pass) {
        return [&passes, pass](Index batch) {
            if (batch == 2 && passes++ == pass) user_error("the held-out chunk is gone");
        };
    };
    const std::vector<Fault> faults = {
        {"data", 11,
         [](Index b) {
             if (b == 11) user_error("the chunk is gone");
         },
         nullptr},
        {"judging", 10, nullptr, fail_in_pass(2)},          // 5, 8, 10
        {"judging_a_save", 16, nullptr, fail_in_pass(4)}};  // 5, 8, 10, 15, 16
    for (const Fault& fault : faults) {
        SCOPED_TRACE(fault.name);
        passes = 0;
        const std::string folder = scratch_ / fault.name;
        Variation variation;
        variation.hook = fault.training;
        variation.held_out_hook = fault.judging;
        EXPECT_NE(message_of<UserError>([&] {
                      run(folder, job, whole_world(), variation);
                  }).find("is gone"),
                  std::string::npos);
        const std::vector<std::string> kept = checkpoints(folder);
        EXPECT_EQ(std::count(kept.begin(), kept.end(), fmt::format("step_{}.h5", fault.step)), 1);
        Variation resumed;
        resumed.resume = true;
        EXPECT_EQ(run(folder, job, whole_world(), resumed), 0);
        const auto all = records(folder);
        ASSERT_EQ(all.size(), straight.size());
        for (std::size_t i = 0; i < all.size(); ++i) {
            EXPECT_EQ(all[i]["loss"], straight[i]["loss"]) << i + 1;
            ASSERT_EQ(all[i].contains("evaluation"), straight[i].contains("evaluation")) << i + 1;
            if (all[i].contains("evaluation")) {
                EXPECT_EQ(all[i]["evaluation"], straight[i]["evaluation"]) << i + 1;
            }
        }
        world_.barrier();
        const auto best = [&](const std::string& run_folder) {
            return nlohmann::json::parse(
                read_file(run_folder + "/results.json"))["best_checkpoint"];
        };
        EXPECT_EQ(best(folder), best(scratch_ / "straight"));
        world_.barrier();
    }
}

TEST_F(TrainerTest, AsynchronousSavesHoldTheSameBytes) {
    TrainJob job = small_job(12);
    job.checkpoint.interval = 1;  // each waits for the last
    job.checkpoint.keep = 3;
    job.checkpoint.keep_best = false;
    ASSERT_EQ(run(scratch_ / "beside", job, whole_world()), 0);
    job.checkpoint.asynchronous = false;
    ASSERT_EQ(run(scratch_ / "between", job, whole_world()), 0);
    const std::vector<std::string> expected = {"step_10.h5", "step_11.h5", "step_12.h5"};
    EXPECT_EQ(checkpoints(scratch_ / "beside"), expected);
    EXPECT_EQ(checkpoints(scratch_ / "between"), expected);
    for (const std::string& name : expected) {
        const auto array = [&](const std::string& folder) {
            const H5File file = H5File::open(folder + "/checkpoints/" + name, &world_);
            const H5Dataset data = file.dataset("moment2/decoder/layer_1/weight");
            std::vector<float> values(static_cast<std::size_t>(data.rows() * data.cols()));
            data.read({0, data.rows()}, values.data());
            return values;
        };
        EXPECT_EQ(array(scratch_ / "beside"), array(scratch_ / "between")) << name;
    }
}

TEST_F(TrainerTest, ATornCheckpointIsPassedOver) {
    TrainJob job = small_job(25);
    job.checkpoint.interval = 8;
    ASSERT_EQ(run(scratch_ / "straight", job, whole_world()), 0);
    Variation variation;
    variation.hook = signal_at(17, world_.rank() == 0);
    const std::string folder = scratch_ / "torn";
    ASSERT_EQ(run(folder, job, whole_world(), variation), exit_interrupted);
    const std::string newest = folder + "/checkpoints/step_18.h5";
    ASSERT_TRUE(fs::exists(newest));
    world_.barrier();
    if (world_.rank() == 0) fs::resize_file(newest, fs::file_size(newest) - 100);
    world_.barrier();
    variation.hook = nullptr;
    variation.resume = true;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder), losses(scratch_ / "straight"));
}

TEST_F(TrainerTest, AFolderWithARunIsRefusedWithoutResume) {
    const TrainJob job = small_job(2);
    ASSERT_EQ(run(scratch_ / "a", job, whole_world()), 0);
    const std::string before = read_file(scratch_ / "a/metrics.jsonl");
    const std::string message =
        message_of<UserError>([&] { run(scratch_ / "a", job, whole_world()); });
    EXPECT_NE(message.find("already holds a run"), std::string::npos) << message;
    EXPECT_NE(message.find("--resume"), std::string::npos) << message;
    EXPECT_EQ(read_file(scratch_ / "a/metrics.jsonl"), before);
}

TEST_F(TrainerTest, AnotherJobIsRefusedOnResume) {
    const TrainJob job = small_job(2);
    ASSERT_EQ(run(scratch_ / "a", job, whole_world()), 0);
    Variation variation;
    variation.resume = true;
    variation.settings = "model.features = 14";
    const std::string message =
        message_of<UserError>([&] { run(scratch_ / "a", job, whole_world(), variation); });
    EXPECT_NE(message.find("model.features"), std::string::npos) << message;
    EXPECT_EQ(read_file(scratch_ / "a/job.resolved.toml"), "model.features = 13");
}

TEST_F(TrainerTest, ARefusalTouchesNoFile) {
    const TrainJob job = small_job(3);
    const std::string folder = scratch_ / "a";
    ASSERT_EQ(run(folder, job, whole_world()), 0);
    const auto state = [&] {
        world_.barrier();
        return read_file(folder + "/metrics.jsonl") + read_file(folder + "/results.json") +
               read_file(folder + "/job.resolved.toml");
    };
    const std::string before = state();
    for (const Index steps : {Index{2}, Index{5}}) {
        Variation variation;
        variation.resume = true;
        variation.settings = steps == 2 ? "schedule.steps = 2" : "model.features = 15";
        const std::string message =
            message_of<UserError>([&] { run(folder, small_job(steps), whole_world(), variation); });
        EXPECT_NE(message.find(steps == 2 ? "has done 3" : "model.features (15, was 13)"),
                  std::string::npos)
            << message;
        EXPECT_EQ(state(), before);
    }
}

// Case 20. The shape is pinned, so the longer run is the run that was long from the beginning.
TEST_F(TrainerTest, AFinishedRunGoesOn) {
    TrainJob job = small_job(16);
    job.schedule.horizon = 12;
    ASSERT_EQ(run(scratch_ / "straight", job, whole_world()), 0);
    const std::string folder = scratch_ / "longer";
    job.schedule.steps = 8;
    ASSERT_EQ(run(folder, job, whole_world()), 0);

    job.schedule.steps = 16;
    Variation variation;
    variation.resume = true;
    variation.settings = "schedule.steps = 16";
    variation.hook = signal_at(11, world_.rank() == 0);
    EXPECT_EQ(run(folder, job, whole_world(), variation), exit_interrupted);
    EXPECT_FALSE(fs::exists(folder + "/results.json"));  // those of step 8 are of another run's end
    EXPECT_EQ(read_file(folder + "/job.resolved.toml"), "schedule.steps = 16");
    world_.barrier();
    variation.hook = nullptr;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder), losses(scratch_ / "straight"));
    const auto results = nlohmann::json::parse(read_file(folder + "/results.json"));
    EXPECT_EQ(results["steps"], 16);
    EXPECT_EQ(results["tokens"], 16 * batch_tokens);
    EXPECT_EQ(results["evaluation"],
              nlohmann::json::parse(read_file(scratch_ / "straight/results.json"))["evaluation"]);
}

TEST_F(TrainerTest, ALongerRunFollowsTheShapeOfItsNewLength) {
    const std::string folder = scratch_ / "a";
    ASSERT_EQ(run(folder, small_job(8), whole_world()), 0);
    Variation variation;
    variation.resume = true;
    variation.settings = "schedule.steps = 16";
    ASSERT_EQ(run(folder, small_job(16), whole_world(), variation), 0);
    const auto all = records(folder);
    ASSERT_EQ(all.size(), 16U);
    // linear, from 1e-2 down to its tenth.
    EXPECT_NEAR(all[7]["learning_rate"], 1e-2 * (1 - 0.9 * 7 / 8), 1e-12);
    EXPECT_NEAR(all[8]["learning_rate"], 1e-2 * (1 - 0.9 * 8 / 16), 1e-12);
    EXPECT_NEAR(all[7]["lambda"], 1e-3 * 7 / 8, 1e-12);
    EXPECT_NEAR(all[8]["lambda"], 1e-3 * 8 / 16, 1e-12);
}

TEST_F(TrainerTest, GoesBackToAStep) {
    TrainJob job = small_job(20);
    job.checkpoint.interval = 4;
    job.checkpoint.keep = 10;
    const std::string folder = scratch_ / "a";
    ASSERT_EQ(run(folder, job, whole_world()), 0);
    const std::vector<double> straight = losses(folder);
    const std::string metrics = read_file(folder + "/metrics.jsonl");
    const std::string results = read_file(folder + "/results.json");
    world_.barrier();

    Variation variation;
    variation.resume_step = 9;
    const std::string message =
        message_of<UserError>([&] { run(folder, job, whole_world(), variation); });
    EXPECT_NE(message.find("--resume-step 9: no such checkpoint in"), std::string::npos) << message;
    EXPECT_NE(message.find("which has 20, 16, 12, 8, 4"), std::string::npos) << message;
    EXPECT_EQ(read_file(folder + "/metrics.jsonl"), metrics);
    world_.barrier();

    variation.resume_step = 8;
    variation.hook = signal_at(9, world_.rank() == 0);
    EXPECT_EQ(run(folder, job, whole_world(), variation), exit_interrupted);
    EXPECT_EQ(losses(folder).size(), 10U);
    EXPECT_EQ(checkpoints(folder),
              (std::vector<std::string>{"step_10.h5", "step_4.h5", "step_8.h5", "superseded-1"}));
    const std::string aside = folder + "/checkpoints/superseded-1/";
    for (const char* file : {"step_12.h5", "step_16.h5", "step_20.h5"})
        EXPECT_TRUE(fs::exists(aside + file)) << file;
    EXPECT_EQ(read_file(aside + "metrics.jsonl"), metrics);
    EXPECT_EQ(read_file(aside + "results.json"), results);
    EXPECT_FALSE(fs::exists(folder + "/results.json"));
    world_.barrier();

    // What was set aside does not come back, and the same steps come out.
    variation = Variation();
    variation.resume = true;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder), straight);
    world_.barrier();
    variation.resume_step = 16;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder), straight);
    EXPECT_TRUE(fs::exists(folder + "/checkpoints/superseded-2/step_20.h5"));
}

TEST_F(TrainerTest, ARunWhoseCheckpointsAreAllDamagedIsNotStartedOver) {
    TrainJob job = small_job(6);
    job.checkpoint.interval = 3;
    const std::string folder = scratch_ / "a";
    ASSERT_EQ(run(folder, job, whole_world()), 0);
    const std::string metrics = read_file(folder + "/metrics.jsonl");
    world_.barrier();
    if (world_.rank() == 0)
        for (const char* name : {"/checkpoints/step_3.h5", "/checkpoints/step_6.h5"})
            fs::resize_file(folder + name, fs::file_size(folder + name) / 2);
    world_.barrier();
    Variation variation;
    variation.resume = true;
    const std::string message =
        message_of<UserError>([&] { run(folder, job, whole_world(), variation); });
    EXPECT_NE(message.find(folder + "/checkpoints"), std::string::npos) << message;
    EXPECT_EQ(read_file(folder + "/metrics.jsonl"), metrics);
    EXPECT_EQ(checkpoints(folder), (std::vector<std::string>{"step_3.h5", "step_6.h5"}));
    world_.barrier();
    // Without any it begins again; what it had logged is not lost.
    if (world_.rank() == 0) fs::remove_all(folder + "/checkpoints");
    world_.barrier();
    ASSERT_EQ(run(folder, job, whole_world(), variation), 0);
    EXPECT_EQ(losses(folder).size(), 6U);
    EXPECT_EQ(read_file(folder + "/checkpoints/superseded-1/metrics.jsonl"), metrics);
    EXPECT_TRUE(fs::exists(folder + "/checkpoints/superseded-1/results.json"));
}

TEST_F(TrainerTest, AStepNeedsARunToGoBackIn) {
    Variation variation;
    variation.resume_step = 4;
    const std::string message =
        message_of<UserError>([&] { run(scratch_ / "a", small_job(2), whole_world(), variation); });
    EXPECT_NE(message.find("holds no run"), std::string::npos) << message;
}

// A job whose step depends on the step's number by Adam's bias correction alone.
TrainJob steady_job(Index steps) {
    TrainJob job = small_job(steps);
    job.loss.sparsity = 0;
    job.schedule.kind = "constant";
    return job;
}

// After 25 batches the source gives its first ones again: a fork of step 25 does what the run did
// from there on, if it has everything of it.
TEST_F(TrainerTest, AForkGoesOnWithParametersAndOptimizer) {
    ASSERT_EQ(run(scratch_ / "straight", steady_job(33), whole_world()), 0);
    ASSERT_EQ(run(scratch_ / "source", steady_job(25), whole_world()), 0);
    const std::vector<double> straight = losses(scratch_ / "straight");
    const std::vector<double> rest(straight.begin() + 25, straight.end());
    for (const Grid& grid : all_grids) {
        if (!fits(grid)) continue;
        SCOPED_TRACE(fmt::format("forked on {}x{}", grid.data, grid.feature));
        const std::string folder = scratch_ / fmt::format("fork_{}x{}", grid.data, grid.feature);
        Variation variation;
        variation.fork = scratch_ / "source";
        variation.settings = "model.k = 6";  // a fork may have other settings
        variation.hook = signal_at(3, world_.rank() == 0);
        EXPECT_EQ(run(folder, steady_job(8), grid, variation), exit_interrupted);
        EXPECT_EQ(checkpoints(folder), (std::vector<std::string>{"step_0.h5", "step_4.h5"}));
        world_.barrier();
        variation.hook = nullptr;
        variation.fork.clear();
        variation.resume = true;
        EXPECT_EQ(run(folder, steady_job(8), grid, variation), 0);
        if (grid.data == whole_world().data && grid.feature == whole_world().feature)
            EXPECT_EQ(losses(folder), rest);
        else
            expect_close(losses(folder), rest);
        const auto results = nlohmann::json::parse(read_file(folder + "/results.json"));
        EXPECT_EQ(results["steps"], 8);
        EXPECT_EQ(results["tokens"], 8 * batch_tokens);
        EXPECT_EQ(results["fork"]["step"], 25);
        EXPECT_EQ(results["fork"]["checkpoint"],
                  fs::absolute(scratch_ / "source/checkpoints/step_25.h5").string());
        EXPECT_EQ(results["fork"]["fingerprint"].get<std::string>().size(), 16U);
    }
    EXPECT_FALSE(
        nlohmann::json::parse(read_file(scratch_ / "source/results.json")).contains("fork"));
}

TEST_F(TrainerTest, AForkMayHaveAFreshOptimizer) {
    ASSERT_EQ(run(scratch_ / "source", steady_job(25), whole_world()), 0);
    Variation variation;
    variation.fork = scratch_ / "source/checkpoints/step_25.h5";
    ASSERT_EQ(run(scratch_ / "kept", steady_job(4), whole_world(), variation), 0);
    variation.fresh_optimizer = true;
    ASSERT_EQ(run(scratch_ / "fresh", steady_job(4), whole_world(), variation), 0);
    // The same parameters, moved by another update.
    EXPECT_EQ(losses(scratch_ / "fresh")[0], losses(scratch_ / "kept")[0]);
    EXPECT_NE(losses(scratch_ / "fresh")[1], losses(scratch_ / "kept")[1]);
    const auto state = [](const std::string& folder) {
        const H5File file = H5File::open(folder + "/checkpoints/step_0.h5");
        return nlohmann::json::parse(file.read_text("extra").value());
    };
    EXPECT_EQ(state(scratch_ / "kept")["updates_before"], 25);
    EXPECT_EQ(state(scratch_ / "fresh")["updates_before"], 0);
    for (const bool fresh : {true, false}) {
        const H5File file =
            H5File::open(scratch_ / (fresh ? "fresh" : "kept") + "/checkpoints/step_0.h5");
        const H5Dataset moments = file.dataset("moment1/encoder/layer_0/bias");
        std::vector<float> values(static_cast<std::size_t>(moments.rows() * moments.cols()));
        moments.read({0, moments.rows()}, values.data());
        EXPECT_EQ(std::all_of(values.begin(), values.end(), [](float m) { return m == 0; }), fresh);
    }
}

TEST_F(TrainerTest, WhatAForkRefuses) {
    ASSERT_EQ(run(scratch_ / "source", steady_job(2), whole_world()), 0);
    const auto refused = [&](const std::string& folder, const TrainJob& job,
                             const std::string& fork) {
        Variation variation;
        variation.fork = fork;
        return message_of<UserError>([&] { run(folder, job, whole_world(), variation); });
    };
    TrainJob job = steady_job(2);
    const std::string source = scratch_ / "source";
    EXPECT_NE(refused(source, job, source).find("already holds a run"), std::string::npos);
    EXPECT_NE(refused(scratch_ / "b", job, scratch_ / "nowhere").find("nowhere"),
              std::string::npos);
    EXPECT_NE(refused(scratch_ / "b", job, scratch_.path()).find("no whole checkpoint"),
              std::string::npos);
    job.model.features = 14;
    EXPECT_NE(refused(scratch_ / "b", job, source).find("model.features (14, was 13)"),
              std::string::npos);
    job = steady_job(2);
    job.model.activation = "jumprelu";
    EXPECT_NE(
        refused(scratch_ / "b", job, source).find("model.activation (jumprelu, was batchtopk)"),
        std::string::npos);
    EXPECT_FALSE(fs::exists(scratch_ / "b"));
}

// A requeued job passes both: the fork is the beginning, --resume what follows.
TEST_F(TrainerTest, AForkThatResumesForksOnce) {
    ASSERT_EQ(run(scratch_ / "source", steady_job(2), whole_world()), 0);
    Variation variation;
    variation.fork = scratch_ / "source";
    variation.resume = true;
    variation.hook = signal_at(2, world_.rank() == 0);
    EXPECT_EQ(run(scratch_ / "a", steady_job(6), whole_world(), variation), exit_interrupted);
    variation.hook = nullptr;
    EXPECT_EQ(run(scratch_ / "a", steady_job(6), whole_world(), variation), 0);
    EXPECT_EQ(losses(scratch_ / "a").size(), 6U);
    variation.resume = false;
    EXPECT_EQ(run(scratch_ / "b", steady_job(6), whole_world(), variation), 0);
    EXPECT_EQ(losses(scratch_ / "a"), losses(scratch_ / "b"));
}

TEST_F(TrainerTest, ACompleteRunResumesToTheSameResults) {
    const TrainJob job = small_job(11);
    const std::string folder = scratch_ / "a";
    ASSERT_EQ(run(folder, job, whole_world()), 0);
    const auto before = nlohmann::json::parse(read_file(folder + "/results.json"));
    world_.barrier();
    Variation variation;
    variation.resume = true;
    EXPECT_EQ(run(folder, job, whole_world(), variation), 0);
    const auto after = nlohmann::json::parse(read_file(folder + "/results.json"));
    EXPECT_EQ(after["evaluation"], before["evaluation"]);
    EXPECT_EQ(after["train_tokens_per_s"], before["train_tokens_per_s"]);
    EXPECT_EQ(losses(folder).size(), 11U);
    EXPECT_EQ(before["evaluation"]["tokens"], ReplaySource::training_batches * batch_tokens);
    EXPECT_EQ(before["tokens"], 11 * batch_tokens);
    EXPECT_EQ(before["checkpoint"], "checkpoints/step_11.h5");
}

TEST_F(TrainerTest, KeepsTheNewestCheckpointsAndTheBest) {
    TrainJob job = small_job(30);
    job.checkpoint.interval = 4;
    job.checkpoint.keep = 2;
    job.optimizer.learning_rate = 0.3;  // too much: a later checkpoint may well be worse
    job.schedule.kind = "constant";
    const std::string folder = scratch_ / "a";
    ASSERT_EQ(run(folder, job, whole_world()), 0);
    Index best_step = 0;
    double best = 0;
    for (const nlohmann::json& record : records(folder)) {
        const Index step = record["step"];
        if (!record.contains("evaluation") || (step % 4 != 0 && step != 30)) continue;
        const double nmse = record["evaluation"]["nmse"];
        if (best_step == 0 || nmse < best) {
            best_step = step;
            best = nmse;
        }
    }
    std::vector<std::string> expected = {"step_28.h5", "step_30.h5",
                                         fmt::format("step_{}.h5", best_step)};
    std::sort(expected.begin(), expected.end());
    expected.erase(std::unique(expected.begin(), expected.end()), expected.end());
    EXPECT_EQ(checkpoints(folder), expected);
    EXPECT_EQ(nlohmann::json::parse(read_file(folder + "/results.json"))["best_checkpoint"],
              fmt::format("checkpoints/step_{}.h5", best_step));
}

TEST_F(TrainerTest, RunsWithoutHeldOutTokens) {
    Variation variation;
    variation.held_out = false;
    const std::string folder = scratch_ / "a";
    EXPECT_EQ(run(folder, small_job(3), whole_world(), variation), 0);
    EXPECT_TRUE(nlohmann::json::parse(read_file(folder + "/results.json"))["evaluation"].is_null());
}

TEST_F(TrainerTest, ANonFiniteLossEndsTheRun) {
    TrainJob job = small_job(12);
    job.checkpoint.interval = 3;
    const std::string folder = scratch_ / "spoiled";
    Variation variation;
    variation.spoil = [](Index batch, std::vector<float>& targets) {
        if (batch == 4 && !targets.empty())  // any token's last layer
            targets[2 * shape.d_model] = std::nanf("");
    };
    const std::string message =
        message_of<UserError>([&] { run(folder, job, whole_world(), variation); });
    EXPECT_NE(message.find("step 5: a number is not finite: the targets of layer 2;"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("[run] on_nonfinite"), std::string::npos) << message;
    const auto all = records(folder);
    ASSERT_EQ(all.size(), 5U);
    EXPECT_EQ(all[4]["finite"], false);
    EXPECT_EQ(all[4]["not_finite"], "the targets of layer 2");
    EXPECT_EQ(checkpoints(folder), std::vector<std::string>{"step_3.h5"});
}

// Neither judged nor kept: a feature with a NaN is never active, so the loss does not show it.
TEST_F(TrainerTest, AParameterBrokenByAnUpdateIsNeverKept) {
    for (const Index steps : {1, 5}) {
        TrainJob job = small_job(steps);
        job.optimizer.weight_decay = 1e300;
        job.run.on_nonfinite = "skip";  // an update cannot be undone
        const std::string folder = scratch_ / fmt::format("{}_steps", steps);
        const std::string message = message_of<UserError>([&] { run(folder, job, whole_world()); });
        EXPECT_NE(message.find("step 1: its update left a number that is not finite: encoder "
                               "weights of layer 0, feature 0;"),
                  std::string::npos)
            << message;
        EXPECT_EQ(checkpoints(folder), std::vector<std::string>());
        EXPECT_FALSE(fs::exists(folder + "/results.json"));
    }
}

TEST_F(TrainerTest, ANonFiniteLossUpdatesNothing) {
    TrainJob job = small_job(12);
    job.run.on_nonfinite = "skip";
    const std::string folder = scratch_ / "spoiled";
    Variation variation;
    variation.spoil = [](Index batch, std::vector<float>& targets) {
        if (batch == 4 && !targets.empty()) targets[0] = std::nanf("");
    };
    ASSERT_EQ(run(folder, job, whole_world(), variation), 0);
    const auto all = records(folder);
    ASSERT_EQ(all.size(), 12U);
    for (std::size_t i = 0; i < all.size(); ++i) {
        EXPECT_EQ(all[i]["finite"], i != 4) << i + 1;
        EXPECT_EQ(all[i]["loss"].is_null(), i == 4) << i + 1;
    }
}

TEST_F(TrainerTest, ADivergedRunStops) {
    Variation variation;
    variation.spoil = [](Index batch, std::vector<float>& targets) {
        if (batch >= 3)
            for (float& y : targets) y = std::nanf("");
    };
    TrainJob job = small_job(60);
    job.run.on_nonfinite = "skip";
    const std::string message =
        message_of<UserError>([&] { run(scratch_ / "a", job, whole_world(), variation); });
    EXPECT_NE(message.find("20 steps in a row"), std::string::npos) << message;
    EXPECT_NE(message.find("step 23"), std::string::npos) << message;
}

TEST_F(TrainerTest, ADivergedRunGoesBackAndOnWithAnotherOrder) {
    TrainJob job = small_job(20);
    job.checkpoint.interval = 4;
    job.run.on_nonfinite = "rollback";
    job.run.nonfinite_limit = 2;
    const std::string folder = scratch_ / "a";
    int fetched = 0;
    Variation variation;
    variation.spoil = [&](Index batch, std::vector<float>& targets) {
        // Batch 10 (from 0) is bad the first two times.
        if (batch == 10 && fetched++ < 2)
            for (float& y : targets) y = std::nanf("");
    };
    ASSERT_EQ(run(folder, job, whole_world(), variation), 0);
    const std::vector<double> with = losses(folder);
    ASSERT_EQ(with.size(), 20U);
    for (const double loss : with) EXPECT_TRUE(std::isfinite(loss));
    ASSERT_EQ(run(scratch_ / "b", job, whole_world()), 0);
    const std::vector<double> without = losses(scratch_ / "b");
    EXPECT_TRUE(std::equal(with.begin(), with.begin() + 8, without.begin()));  // step 8 was kept
    EXPECT_NE(with[8], without[8]);
    // It remembers its order.
    job.schedule.steps = 24;
    job.schedule.horizon = 20;
    Variation resumed;
    resumed.resume = true;
    ASSERT_EQ(run(folder, job, whole_world(), resumed), 0);

    fetched = -100;
    EXPECT_THROW(run(scratch_ / "c", job, whole_world(), variation), UserError);
    EXPECT_EQ(checkpoints(scratch_ / "c").back(), "step_8.h5");
}

// reference-cases C22: window 1 and strict.
TEST_F(TrainerTest, DeadMeansSilentForMoreThanTheWindow) {
    const std::unique_ptr<Backend> backend = test::make_test_backend(world_);
    const ProcessGrid grid(world_, 1, world_.size());
    ModelConfig model;
    model.features = shape.features;
    model.k = 6;
    Params params(*backend, shape, grid.feature_shard(shape.features), model, 42);
    Step step(*backend, grid, params, model, LossConfig(),
              std::vector<float>(static_cast<std::size_t>(shape.layers * shape.d_model), 1.0F),
              batch_tokens);
    // Global feature f of layer l is silent for (f + l) % 3 steps.
    std::vector<Index> silence;
    const Shard features = params.features();
    for (Index layer = 0; layer < shape.layers; ++layer)
        for (Index f = features.begin; f < features.end; ++f) silence.push_back((f + layer) % 3);
    backend->upload(std::span<const Index>(silence), step.silence());
    EXPECT_EQ(step.dead_features(1), (std::vector<Index>{4, 4, 5}));
    EXPECT_EQ(step.dead_features(2), (std::vector<Index>{0, 0, 0}));
    EXPECT_EQ(step.dead_features(0), (std::vector<Index>{8, 9, 9}));
}

}  // namespace
}  // namespace clt
