// The trainer's parts without ranks or files: schedules, optimiser scalars, metrics, texts.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "clt/train/metrics.hpp"
#include "clt/train/optimizer.hpp"
#include "train/run_state.hpp"
#include "train/schedule.hpp"

namespace clt {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// reference-cases C11: values x 1e3 at t = 0..9 and after the last step.
struct RateCase {
    const char* name;
    ScheduleConfig schedule;
    std::vector<double> expected;
};

ScheduleConfig schedule_of(const std::string& kind) {
    ScheduleConfig schedule;
    schedule.steps = 10;
    schedule.kind = kind;
    return schedule;
}

std::vector<RateCase> rate_cases() {
    ScheduleConfig half = schedule_of("linear");
    half.end_factor = 0.5;
    ScheduleConfig floor = schedule_of("cosine");
    floor.minimum = 1e-4;
    ScheduleConfig middle = schedule_of("linear_final");
    middle.decay_start = 0.5;
    ScheduleConfig warm = schedule_of("constant");
    warm.warmup_steps = 4;
    ScheduleConfig never = schedule_of("linear_final");
    never.decay_start = 1;
    return {
        {"linear", schedule_of("linear"), {1, .91, .82, .73, .64, .55, .46, .37, .28, .19, .1, .1}},
        {"linear 0.5", half, {1, .95, .9, .85, .8, .75, .7, .65, .6, .55, .5, .5}},
        {"cosine",
         schedule_of("cosine"),
         {1, .975528, .904508, .793893, .654508, .5, .345492, .206107, .095492, .024472, 0, 0}},
        {"cosine 1e-4",
         floor,
         {1, .977975, .914058, .814503, .689058, .55, .410942, .285497, .185942, .122025, .1, .1}},
        {"linear_final", schedule_of("linear_final"), {1, 1, 1, 1, 1, 1, 1, 1, 1, .5, 0, 0}},
        {"linear_final 0.5", middle, {1, 1, 1, 1, 1, 1, .8, .6, .4, .2, 0, 0}},
        {"linear_final 1", never, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0}},
        {"constant", schedule_of("constant"), {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
        {"warm-up", warm, {.25, .5, .75, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
    };
}

TEST(Schedule, LearningRatesOfCase11) {
    for (const RateCase& c : rate_cases())
        for (std::size_t t = 0; t < c.expected.size(); ++t)
            // The case's six digits; 1e-6 of the base.
            EXPECT_NEAR(1e3 * learning_rate(c.schedule, 1e-3, static_cast<Index>(t)), c.expected[t],
                        1e-6)
                << c.name << " at " << t;
}

TEST(Schedule, WarmUpIsMultipliedOntoTheShape) {
    ScheduleConfig schedule = schedule_of("linear");
    schedule.warmup_steps = 5;
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 1e-3, 1), 1e-3 * 0.91 * 2 / 5);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 1e-3, 4), 1e-3 * 0.64);
}

// A run that goes on beyond the horizon: the shape does not know of the further steps.
TEST(Schedule, TheHorizonPinsTheShape) {
    for (const RateCase& c : rate_cases()) {
        ScheduleConfig longer = c.schedule;
        longer.steps = 30;
        longer.horizon = 10;
        for (Index t = 0; t < 12; ++t)
            EXPECT_EQ(learning_rate(longer, 1e-3, t), learning_rate(c.schedule, 1e-3, t)) << c.name;
        EXPECT_EQ(learning_rate(longer, 1e-3, 29), learning_rate(c.schedule, 1e-3, 10)) << c.name;
    }
    LossConfig loss;
    loss.sparsity = 2e-3;
    ScheduleConfig schedule = schedule_of("constant");
    const auto weight = [&](Index step) {
        return step_scalars(OptimizerConfig(), schedule, loss, step).sparsity;
    };
    EXPECT_EQ(weight(5), 1e-3);
    schedule.steps = 40;
    EXPECT_EQ(weight(5), 2.5e-4);
    schedule.horizon = 10;
    EXPECT_EQ(weight(5), 1e-3);
    EXPECT_EQ(weight(30), 2e-3);
}

TEST(Schedule, SparsityWeightsOfCase6) {
    LossConfig loss;
    loss.sparsity = 2e-3;
    EXPECT_EQ(sparsity_weight(loss, 1000, 0), 0);
    EXPECT_NEAR(sparsity_weight(loss, 1000, 250), 5e-4, 1e-15);
    EXPECT_EQ(sparsity_weight(loss, 1000, 1000), 2e-3);
    EXPECT_EQ(sparsity_weight(loss, 1000, 2000), 2e-3);

    loss.sparsity_schedule = "delayed_linear";
    loss.sparsity_delay = 0.2;
    const std::vector<std::pair<Index, double>> expected = {
        {0, 0}, {199, 0}, {200, 0}, {201, 2.5e-6}, {600, 1e-3}, {999, 1.9975e-3}, {1000, 2e-3}};
    for (const auto& [t, weight] : expected)
        EXPECT_NEAR(sparsity_weight(loss, 1000, t), weight, 1e-15) << t;

    loss.sparsity_delay = 1;
    EXPECT_EQ(sparsity_weight(loss, 1000, 999), 0);
    EXPECT_EQ(sparsity_weight(loss, 1000, 1000), 2e-3);
}

TEST(Schedule, ATinySparsityWeightIsNone) {
    LossConfig loss;
    loss.sparsity = 1e-7;
    EXPECT_EQ(sparsity_weight(loss, 1000, 9), 0);  // 9e-10
    EXPECT_GT(sparsity_weight(loss, 1000, 11), 0);
}

// Adam by the book on one element, in double.
double adam_by_the_book(int steps, double lr, double decay) {
    double p = 1;
    double m = 0;
    double v = 0;
    for (int t = 1; t <= steps; ++t) {
        const double g = 0.1 * t - 0.2;
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        const double mhat = m / (1 - std::pow(0.9, t));
        const double vhat = v / (1 - std::pow(0.999, t));
        p = p - lr * decay * p - lr * mhat / (std::sqrt(vhat) + 1e-8);
    }
    return p;
}

TEST(Optimizer, ScalarsMakeAdamOfTheBook) {
    OptimizerConfig optimizer;
    optimizer.learning_rate = 0.05;
    optimizer.weight_decay = 0.1;
    ScheduleConfig schedule = schedule_of("constant");
    float p = 1;
    float m = 0;
    float v = 0;
    float p_bias = 1;
    float m_bias = 0;
    float v_bias = 0;
    for (Index step = 0; step < 6; ++step) {
        const StepScalars scalars = step_scalars(optimizer, schedule, LossConfig(), step);
        const float g = 0.1F * static_cast<float>(step + 1) - 0.2F;
        adam_update(scalars.adam, g, p, m, v);
        adam_update(scalars.adam_bias, g, p_bias, m_bias, v_bias);
    }
    // Six float updates of size <= lr: c * eps * steps with c = 10.
    EXPECT_NEAR(static_cast<double>(p), adam_by_the_book(6, 0.05, 0.1), 60 * 6e-8);
    EXPECT_NEAR(static_cast<double>(p_bias), adam_by_the_book(6, 0.05, 0), 60 * 6e-8);
}

// Moments of another run have seen updates; moments that start at 0 have not.
TEST(Optimizer, BiasCorrectionCountsTheUpdatesOfTheMoments) {
    const ScheduleConfig schedule = schedule_of("constant");
    const OptimizerConfig optimizer;
    const StepScalars first = step_scalars(optimizer, schedule, LossConfig(), 0);
    const StepScalars kept = step_scalars(optimizer, schedule, LossConfig(), 0, 7);
    const StepScalars eighth = step_scalars(optimizer, schedule, LossConfig(), 7);
    EXPECT_EQ(kept.adam.step_size, eighth.adam.step_size);
    EXPECT_EQ(kept.adam.inverse_root_correction2, eighth.adam.inverse_root_correction2);
    EXPECT_NE(kept.adam.step_size, first.adam.step_size);
    // The schedule is of the new run.
    ScheduleConfig falling = schedule_of("linear");
    EXPECT_EQ(step_scalars(optimizer, falling, LossConfig(), 0, 7).adam.decay,
              step_scalars(optimizer, falling, LossConfig(), 0).adam.decay);
}

TEST(Optimizer, DecayBelongsToAdamwAndToWeights) {
    const ScheduleConfig schedule = schedule_of("constant");
    OptimizerConfig optimizer;
    StepScalars scalars = step_scalars(optimizer, schedule, LossConfig(), 0);
    EXPECT_FLOAT_EQ(scalars.adam.decay, 1e-5F);
    EXPECT_EQ(scalars.adam_bias.decay, 0);
    optimizer.reference_biases = true;
    scalars = step_scalars(optimizer, schedule, LossConfig(), 0);
    EXPECT_FLOAT_EQ(scalars.adam_bias.decay, 1e-5F);
    EXPECT_TRUE(scalars.reference_biases);
    optimizer.kind = "adam";
    scalars = step_scalars(optimizer, schedule, LossConfig(), 0);
    EXPECT_EQ(scalars.adam.decay, 0);
    EXPECT_EQ(scalars.adam_bias.decay, 0);
}

// reference-cases C8, rows are tokens.
using Rows = std::vector<std::vector<double>>;

Step::EvaluationSums sums_of(const std::vector<Rows>& yhat, const std::vector<Rows>& y,
                             Index features, const Rows& scale = {}) {
    Step::EvaluationSums sums;
    sums.tokens = static_cast<Index>(y[0].size());
    for (std::size_t l = 0; l < y.size(); ++l) {
        for (std::size_t c = 0; c < y[l][0].size(); ++c) {
            const double s = scale.empty() ? 1 : scale[l][c];
            double target = 0;
            double target_squared = 0;
            double error = 0;
            double error_squared = 0;
            for (std::size_t t = 0; t < y[l].size(); ++t) {
                const double e = s * (yhat[l][t][c] - y[l][t][c]);
                target += s * y[l][t][c];
                target_squared += s * s * y[l][t][c] * y[l][t][c];
                error += e;
                error_squared += e * e;
            }
            sums.target.push_back(target);
            sums.target_squared.push_back(target_squared);
            sums.error.push_back(error);
            sums.error_squared.push_back(error_squared);
        }
    }
    sums.active_tokens.assign(y.size() * static_cast<std::size_t>(features), 0);
    sums.fired_tokens = sums.active_tokens;
    return sums;
}

const std::vector<Rows> case8_yhat = {{{1, 2}, {3, 4}}, {{0, 0}, {1, 1}}};
const std::vector<Rows> case8_y = {{{1, 1}, {1, 4}}, {{1, 0}, {0, 3}}};

TEST(Metrics, ReconstructionOfCase8) {
    const Evaluation e = evaluation_of(sums_of(case8_yhat, case8_y, 1), {2, 2, 1});
    EXPECT_NEAR(e.layers[0].nmse, 1.1111111, 1e-6);
    EXPECT_NEAR(e.layers[1].nmse, 1.2, 1e-6);
    EXPECT_NEAR(e.layers[0].explained_variance, 0.4444444, 1e-6);
    EXPECT_NEAR(e.layers[1].explained_variance, 0.2, 1e-6);
    EXPECT_NEAR(e.nmse, 1.1555556, 1e-6);
    EXPECT_NEAR(e.explained_variance, 0.3222222, 1e-6);
    EXPECT_NEAR(e.layers[0].mse + e.layers[1].mse, 2.75, 1e-12);  // the reconstruction loss
    // Pooled: total mse 1.25 + 1.5 over total variance 1.125 + 1.25, by hand.
    EXPECT_NEAR(e.nmse_pooled, 2.75 / 2.375, 1e-12);
}

TEST(Metrics, ReconstructionOfCase8WithMeanStd) {
    const Rows scale = {{2, 0.5}, {1, 3}};
    const Evaluation e = evaluation_of(sums_of(case8_yhat, case8_y, 1, scale), {2, 2, 1});
    EXPECT_NEAR(e.layers[0].nmse, 14.4444444, 1e-6);
    EXPECT_NEAR(e.layers[1].nmse, 0.9268293, 1e-6);
    EXPECT_NEAR(e.layers[0].explained_variance, -6.2222222, 1e-6);
    EXPECT_NEAR(e.layers[1].explained_variance, 0.5121951, 1e-6);
    EXPECT_NEAR(e.nmse, 7.6856369, 1e-6);
    EXPECT_EQ(e.explained_variance, 0);  // clamped
    // By hand: error variances 2.03125 + 5 over target variances 0.28125 + 10.25.
    EXPECT_NEAR(e.explained_variance_pooled, 1 - 7.03125 / 10.53125, 1e-12);
}

TEST(Metrics, ReconstructionOfCase8SingleAndConstant) {
    const Evaluation single = evaluation_of(
        sums_of({{{0.5, 0}, {2, 3}, {3, 2}}}, {{{0, 0}, {2, 4}, {4, 2}}}, 1), {1, 2, 1});
    EXPECT_NEAR(single.explained_variance, 0.8854167, 1e-6);
    EXPECT_NEAR(single.nmse, 0.1406250, 1e-6);

    const Evaluation constant =
        evaluation_of(sums_of({{{2, 2}, {2, 2}}}, {{{1, 1}, {1, 1}}}, 1), {1, 2, 1});
    EXPECT_EQ(constant.explained_variance, 1);
    EXPECT_EQ(constant.nmse, infinity);
    EXPECT_FALSE(constant.finite());
    const Evaluation exact =
        evaluation_of(sums_of({{{1, 1}, {1, 1}}}, {{{1, 1}, {1, 1}}}, 1), {1, 2, 1});
    EXPECT_EQ(exact.nmse, 0);
}

TEST(Metrics, ANanIsNotHiddenByTheConstantTargetRule) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const Evaluation e =
        evaluation_of(sums_of({{{nan, 1}, {1, 1}}}, {{{1, 1}, {1, 1}}}, 1), {1, 2, 1});
    EXPECT_TRUE(std::isnan(e.nmse));
    EXPECT_TRUE(std::isnan(e.layers[0].explained_variance));
    EXPECT_FALSE(e.finite());
}

// reference-cases C9: a0 = [[0,1.5],[-0.3,2],[0,0],[0,1e-7]], a1 = [[1,0],[1,0],[1,0],[1,0.2]].
TEST(Metrics, SparsityAndDensityOfCase9) {
    const Rows zeros(4, {0, 0});
    Step::EvaluationSums sums = sums_of({zeros, zeros}, {zeros, zeros}, 2);
    sums.active_tokens = {1, 3, 4, 1};
    sums.fired_tokens = {0, 2, 4, 1};
    const Evaluation e = evaluation_of(sums, {2, 2, 2});
    EXPECT_DOUBLE_EQ(e.l0, 2.25);
    EXPECT_DOUBLE_EQ(e.l0_mean, 1.125);
    EXPECT_DOUBLE_EQ(e.sparsity_fraction, 0.4375);
    EXPECT_DOUBLE_EQ(e.layers[0].l0, 1.0);
    EXPECT_DOUBLE_EQ(e.layers[1].l0, 1.25);
    EXPECT_NEAR(e.log10_density_mean, -2.7257725, 1e-6);
    EXPECT_NEAR(e.layers[0].log10_density_mean, (-10 - 0.30103) / 2, 1e-6);
    EXPECT_NEAR(e.layers[1].log10_density_mean, (0 - 0.60206) / 2, 1e-6);
    EXPECT_DOUBLE_EQ(e.active_tokens_mean, (0 + 2 + 4 + 1) / 4.0);
    EXPECT_DOUBLE_EQ(e.density_mean, 7.0 / 16);
    EXPECT_EQ(e.dead_features, 1);
    EXPECT_EQ(e.layers[0].dead_features, 1);
    EXPECT_EQ(e.layers[1].dead_features, 0);
    std::vector<Index> counts(Evaluation::density_bins, 0);
    counts[0] = 1;   // -10
    counts[18] = 1;  // -0.602
    counts[19] = 2;  // -0.301 and 0
    EXPECT_EQ(e.log10_density_counts, counts);
}

TEST(Metrics, BatchNmseFollowsTheSameRule) {
    const std::vector<double> nmse = batch_nmse({12, 0, 1}, {2, 0, 0}, 3, 2);
    EXPECT_DOUBLE_EQ(nmse[0], 1);
    EXPECT_EQ(nmse[1], 0);
    EXPECT_EQ(nmse[2], infinity);
}

TrainingRecord example_record() {
    TrainingRecord record;
    record.step = 1200;
    record.tokens = 1200 * 64;
    record.result.reconstruction = 0.25;
    record.result.sparsity = 0.09;
    record.result.total = 0.34;
    record.result.l0 = {30, 33.5};
    record.nmse = {0.3, 0.4};
    record.dead_features = {7, 5};
    record.interval_steps = 10;
    record.interval_s = 2;
    record.tokens_per_s = 320;
    record.wait_for_data_s = 0.01;
    record.stages_s = {{"decode", 0.05}};
    return record;
}

TEST(Lines, ATrainingRecordIsOneJsonObject) {
    const std::string line = to_json(example_record());
    EXPECT_EQ(line.find('\n'), std::string::npos);
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["step"], 1200);
    EXPECT_EQ(json["finite"], true);
    EXPECT_EQ(json["loss"], 0.34);
    EXPECT_EQ(json["l0"], 63.5);
    EXPECT_EQ(json["l0_per_layer"], (std::vector<double>{30, 33.5}));
    EXPECT_EQ(json["dead_features"], 12);
    EXPECT_EQ(json["step_s"], 0.2);
    EXPECT_EQ(json["stages_s"]["decode"], 0.05);
    EXPECT_FALSE(json.contains("evaluation"));
    EXPECT_FALSE(json.contains("gradient_norm"));
}

TEST(Lines, ADoubleSurvivesTheJson) {
    TrainingRecord record = example_record();
    record.result.total = 0.1 + 0.2;
    const auto json = nlohmann::json::parse(to_json(record));
    EXPECT_EQ(json["loss"].get<double>(), 0.1 + 0.2);
}

TEST(Lines, WhatIsNotFiniteIsNull) {
    TrainingRecord record = example_record();
    record.result.total = std::numeric_limits<double>::quiet_NaN();
    record.result.finite = false;
    record.evaluation = evaluation_of(sums_of({{{2}, {2}}}, {{{1}, {1}}}, 1), {1, 1, 1});
    const auto json = nlohmann::json::parse(to_json(record));
    EXPECT_TRUE(json["loss"].is_null());
    EXPECT_EQ(json["finite"], false);
    EXPECT_TRUE(json["evaluation"]["nmse"].is_null());
    EXPECT_EQ(json["evaluation"]["finite"], false);
}

TEST(Lines, TheLiveLine) {
    EXPECT_EQ(live_line(example_record(), 5000, 760),
              "step 1200/5000  loss 0.34  L0 63.5  NMSE 0.3500  dead 12  320 tokens/s  waiting "
              "0.5%  12:40 left");
}

TEST(Lines, Durations) {
    EXPECT_EQ(format_duration(0), "0:00");
    EXPECT_EQ(format_duration(59.6), "1:00");
    EXPECT_EQ(format_duration(3600 + 2 * 60 + 3), "1:02:03");
}

TEST(RunStateTest, GoesThroughItsJson) {
    RunState state;
    state.tokens = Index{1} << 40;
    state.train_s = 0.1;
    state.seconds = 12.25;
    state.metrics_bytes = 12345;
    state.metrics_fingerprint = "0123456789abcdef";
    state.skipped_in_a_row = 3;
    state.best_step = 40;
    state.best_nmse = 0.1 + 0.2;
    const RunState back = parse_run_state(to_json(state), "step_50.h5");
    EXPECT_EQ(to_json(back), to_json(state));
    EXPECT_EQ(back.tokens, state.tokens);
    EXPECT_EQ(back.best_nmse, state.best_nmse);
}

TEST(RunStateTest, NamesTheCheckpointThatIsNotOurs) {
    for (const char* text : {"", "{}", "[1]", "{\"tokens\": \"many\"}"}) {
        try {
            parse_run_state(text, "runs/a/step_50.h5");
            ADD_FAILURE() << "accepted " << text;
        } catch (const UserError& error) {
            EXPECT_NE(std::string(error.what()).find("runs/a/step_50.h5"), std::string::npos);
        }
    }
}

}  // namespace
}  // namespace clt
