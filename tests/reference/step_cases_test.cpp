// The production step where grids, ties and odd values meet: selections entry by entry, the numeric
// cases C4, C16, C21 and C22, NaN, and every grid against one rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "reference/step_problem.hpp"

namespace clt::reference {
namespace {

class StepCases : public testing::Test {
  protected:
    /// GridStep on every grid of the world's ranks, one after the other.
    void on_every_grid(const RunSetup& setup, const std::function<void(GridStep&)>& check) const {
        for (const auto& [data, feature] : grids_of(world.size())) {
            SCOPED_TRACE(fmt::format("grid {} x {}", data, feature));
            GridStep step(world, data, feature, setup);
            check(step);
        }
    }

    Communicator world = Communicator::world();
    Communicator self = world.split(world.rank(), 0);  // this rank as a world of its own
};

double sum(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
}

/// The step's active entries are the oracle's, each with the oracle's value.
void expect_same_entries(GridStep& step, const Problem& problem) {
    const Batch& batch = problem.batches[0];
    const Forward forward = problem.setup.oracle().forward(problem.initial, batch, problem.lambda);
    step.set(problem.initial);
    const Vector got = step.activation(batch);
    ASSERT_EQ(got.size(), forward.activation.size());
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_TRUE(std::abs(got[i] - forward.activation[i]) <= 1e-5)  // values are of order 1
            << "entry " << i << ": " << got[i] << ", oracle " << forward.activation[i];
    const Step::EvaluationSums sums = step.sums(batch);
    const auto columns =
        static_cast<std::size_t>(problem.setup.shape.layers * problem.setup.shape.features);
    for (std::size_t c = 0; c < columns; ++c) {
        Index active = 0;
        Index fired = 0;
        for (std::size_t i = c; i < got.size(); i += columns) {
            active += forward.activation[i] != 0 ? 1 : 0;
            fired += forward.activation[i] > 1e-6 ? 1 : 0;
        }
        EXPECT_EQ(sums.active_tokens[c], active) << "column " << c;
        EXPECT_EQ(sums.fired_tokens[c], fired) << "column " << c;
    }
}

TEST_F(StepCases, TheSameEntriesOnEveryGrid) {
    for (const Kind& kind : kinds()) {
        SCOPED_TRACE(kind.name);
        const Problem problem = random_problem(kind, {2, 6, 7}, 9, 1, 500);
        on_every_grid(problem.setup, [&](GridStep& step) { expect_same_entries(step, problem); });
    }
}

// Small integers make every pre-activation exact; tokens and features come in equal pairs, so most
// of the ranking is ties and the budget ends within one.
TEST_F(StepCases, TiesFallByTokenLayerFeature) {
    for (const Kind& kind : kinds()) {
        if (kind.k == 0) continue;
        SCOPED_TRACE(kind.name);
        Problem problem = random_problem(kind, {2, 4, 8}, 10, 1, 600);
        const auto pair_up = [](Vector& values, std::size_t width) {
            for (std::size_t i = 0; i < values.size(); ++i) {
                const std::size_t row = i / width;
                values[i] = row % 2 == 1 ? values[i - width] : std::round(2 * values[i]);
            }
        };
        pair_up(problem.batches[0].inputs, 8);
        for (Vector& encoder : problem.initial.encoder) pair_up(encoder, 4);
        for (Vector& bias : problem.initial.encoder_bias) std::fill(bias.begin(), bias.end(), 0.0);
        on_every_grid(problem.setup, [&](GridStep& step) { expect_same_entries(step, problem); });
    }
}

TEST_F(StepCases, ABudgetBeyondAllEntriesKeepsAll) {
    for (const char* activation : {"batchtopk", "topk"}) {
        SCOPED_TRACE(activation);
        const Problem problem =
            random_problem({activation, activation, 50, "raw", true}, {2, 3, 5}, 7, 1, 700);
        on_every_grid(problem.setup, [&](GridStep& step) {
            expect_same_entries(step, problem);
            EXPECT_EQ(step.evaluate(problem.batches[0]).l0, (std::vector<double>{5, 5}));
        });
    }
}

// A bound carried over from quiet tokens lets half of the loud ones through, more than there is
// room for: the pass is repeated, and the selection is that of a step which carries nothing.
TEST_F(StepCases, ABoundThatLetsTooManyThroughChangesNothing) {
    Problem problem = random_problem({"batchtopk", "batchtopk", 3}, {2, 4, 6000}, 64, 2, 650);
    for (double& x : problem.batches[0].inputs) x *= 1e-3;
    for (double& x : problem.batches[1].inputs) x *= 128;
    on_every_grid(problem.setup, [&](GridStep& step) {
        step.set(problem.initial);
        const Step::EvaluationSums fresh = step.sums(problem.batches[1]);
        const StepResult quiet = step.evaluate(problem.batches[0]);
        EXPECT_LT(quiet.threshold, 0.5);
        const Step::EvaluationSums carried = step.sums(problem.batches[1]);
        EXPECT_EQ(carried.active_tokens, fresh.active_tokens);
        EXPECT_EQ(carried.error_squared, fresh.error_squared);
        EXPECT_EQ(std::accumulate(fresh.active_tokens.begin(), fresh.active_tokens.end(), Index{0}),
                  3 * 64);
    });
}

// A bound carried over may let through just what is kept: then, too, the threshold is the smallest
// score kept, as in a step that carries nothing (a resumed run would log another one).
TEST_F(StepCases, ABoundThatLetsThroughJustTheBudgetGivesTheThreshold) {
    for (int seed = 0; seed < 8; ++seed) {
        Problem problem =
            random_problem({"batchtopk", "batchtopk", 1}, {2, 4, 6}, 5, 1, 660 + seed);
        on_every_grid(problem.setup, [&](GridStep& step) {
            step.set(problem.initial);
            const double fresh = step.evaluate(problem.batches[0]).threshold;
            EXPECT_EQ(step.evaluate(problem.batches[0]).threshold, fresh) << "seed " << seed;
        });
    }
}

// How many entries pass is not known before the first batch.
TEST_F(StepCases, RoomForUnrankedEntriesGrows) {
    Problem problem = random_problem({"relu_sparse", "relu"}, {2, 4, 8'000}, 16, 1, 660);
    for (Vector& bias : problem.initial.encoder_bias)
        std::fill(bias.begin(), bias.end(), -1.4375);  // 7.5 % pass, under the dense path's 10
    const Forward forward = problem.setup.oracle().forward(problem.initial, problem.batches[0], 0);
    const auto active = std::count_if(forward.activation.begin(), forward.activation.end(),
                                      [](double a) { return a != 0; });
    on_every_grid(problem.setup, [&](GridStep& step) {
        step.set(problem.initial);
        for (int repeat = 0; repeat < 2; ++repeat) {
            const StepResult result = step.evaluate(problem.batches[0]);
            EXPECT_FALSE(result.dense);
            EXPECT_EQ(sum(result.l0) * 16, static_cast<double>(active));
        }
    });
}

// Replicas of 512 and 513 tokens must walk the same tiles, for they meet in each tile's sums; one
// layer is wider than a tile.
TEST_F(StepCases, ReplicasOfUnequalSizeShareTheirZScores) {
    const Problem problem =
        random_problem({"zscore", "batchtopk", 4, "zscore"}, {1, 2, 1100}, 1025, 1, 800);
    for (const auto& [data, feature] : grids_of(world.size()))
        expect_follows_oracle(world, data, feature, problem);
}

TEST_F(StepCases, C4TheBudgetIsMetOnAnyNumberOfShards) {
    struct Case {
        Index layers, features, k, tokens;
    };
    for (const Case& c : {Case{4, 1024, 64, 32}, Case{4, 64, 16, 128}, Case{12, 512, 200, 256},
                          Case{2, 32, 20, 16}}) {
        SCOPED_TRACE(fmt::format("L {}, F {}, k {}, B {}", c.layers, c.features, c.k, c.tokens));
        const Problem problem =
            random_problem({"c4", "batchtopk", static_cast<double>(c.k), "raw", true},
                           {c.layers, 4, c.features}, c.tokens, 1, 900);
        GridStep alone(self, 1, 1, problem.setup);
        alone.set(problem.initial);
        const Step::EvaluationSums expected = alone.sums(problem.batches[0]);
        on_every_grid(problem.setup, [&](GridStep& step) {
            step.set(problem.initial);
            const Step::EvaluationSums got = step.sums(problem.batches[0]);
            EXPECT_EQ(std::accumulate(got.active_tokens.begin(), got.active_tokens.end(), Index{0}),
                      c.k * c.tokens);
            EXPECT_EQ(got.active_tokens, expected.active_tokens);
            EXPECT_EQ(got.fired_tokens, expected.fired_tokens);
        });
    }
}

TEST_F(StepCases, C16ThreeStepsAgreeOnAnyGrid) {
    const Shape shape{2, 2, 2};
    RunSetup setup;
    setup.shape = shape;
    setup.model.features = 2;
    setup.model.activation = "relu";
    setup.loss.sparsity = 0.01;
    setup.loss.sparsity_reduction = "sum";
    setup.loss.preactivation = 0.003;
    setup.optimizer.reference_biases = true;
    setup.max_tokens = 2;
    Parameters params(shape, false);
    params.encoder = {{1, 0, 0, 1}, {1, 1, 1, -1}};
    params.decoder = {{1, 0, 0.5, 0, 0, 1, 0, 0.5}, {1, 0, 0, 1}};
    const Batch batch{2, {1, -1, 0.5, 0.5, 2, 0.5, -1, 1}, {1, 0, 0, 1, 1, 1, 2, 0}};
    const double total[] = {1.39174998, 0.82267684, 0.62372392};
    const double sparsity[] = {0, 0.00307878, 0.00582995};
    on_every_grid(setup, [&](GridStep& step) {
        step.set(params);
        for (int t = 0; t < 3; ++t) {
            const StepResult result = step.train(batch, 0.01 * t / 10, 0.1);
            EXPECT_TRUE(std::abs(result.total - total[t]) <= 1e-4) << result.total;
            EXPECT_TRUE(std::abs(result.sparsity - sparsity[t]) <= 1e-6) << result.sparsity;
        }
        const Parameters got = step.values();
        const auto near = [](double value, double wanted) {
            EXPECT_TRUE(std::abs(value - wanted) <= 1e-4) << value << ", expected " << wanted;
        };
        near(got.encoder[0][0], 0.8527851);
        near(got.encoder[0][1], 0.2653533);
        near(got.encoder[0][3], 1.0583700);
        near(got.decoder[1][2], -0.1597933);
        near(got.decoder[1][1], 0.2706834);
        near(got.decoder_bias[0], -0.1593498);
        near(got.decoder_bias[1], 0.0787410);
    });
}

TEST_F(StepCases, C21InitialValuesAreInBoundsAndTheSameBitsOnEveryGrid) {
    RunSetup setup;
    setup.shape = {3, 4, 6};
    setup.model.features = 6;
    setup.model.activation = "jumprelu";
    setup.max_tokens = 1;
    GridStep alone(self, 1, 1, setup, 42);
    Parameters expected = alone.values();
    const auto bounded = [](const Vector& values, double bound) {
        const auto [low, high] = std::minmax_element(values.begin(), values.end());
        EXPECT_GE(*low, -bound);
        EXPECT_LE(*high, bound);
        EXPECT_LT(*low, -bound / 2);  // and they spread
        EXPECT_GT(*high, bound / 2);
    };
    for (std::size_t l = 0; l < 3; ++l) {
        bounded(expected.encoder[l], 0.4082483);
        bounded(expected.decoder[l], 0.2886752);
        EXPECT_EQ(expected.encoder_bias[l], Vector(6, 0.0));
        for (const double theta : expected.log_threshold[l])
            EXPECT_TRUE(std::abs(theta + 3.5065579) <= 1e-6) << theta;
    }
    EXPECT_EQ(expected.decoder_bias, Vector(12, 0.0));
    EXPECT_EQ(expected.arrays().size(), 3U + 3U + 3U + 1U + 3U);

    for (const auto& [data, feature] : grids_of(world.size())) {
        GridStep step(world, data, feature, setup, 42);
        Parameters got = step.values();
        const auto arrays = got.arrays();
        const auto wanted = expected.arrays();
        for (std::size_t a = 0; a < arrays.size(); ++a)
            EXPECT_EQ(*arrays[a].second, *wanted[a].second) << arrays[a].first;
        EXPECT_TRUE(step.replicas_agree());
    }
    GridStep other(self, 1, 1, setup, 43);
    EXPECT_NE(other.values().encoder[0], expected.encoder[0]);
}

// One token; feature 0 fires at step 0 only, feature 1 always, feature 2 never, feature 3 is kept
// with a negative value, which is no firing.
TEST_F(StepCases, C22AFeatureIsDeadAfterMoreSilentStepsThanTheWindow) {
    RunSetup setup;
    setup.shape = {1, 1, 4};
    setup.model.features = 4;
    setup.model.activation = "topk";
    setup.model.k = 4;
    setup.model.keep_negative = true;
    setup.max_tokens = 1;
    Parameters params(setup.shape, false);
    params.encoder = {{1, 0, 0, 0}};
    params.encoder_bias = {{0, 1, 0, -1}};
    const auto batch = [](double x) { return Batch{1, {x}, {0}}; };
    on_every_grid(setup, [&](GridStep& step) {
        step.set(params);
        constexpr double no_move = 1e-12;
        step.train(batch(1), 0, no_move);
        EXPECT_EQ(step.step().dead_features(0), std::vector<Index>{2});
        EXPECT_EQ(step.step().dead_features(1), std::vector<Index>{0});
        step.train(batch(-1), 0, no_move);
        EXPECT_EQ(step.step().dead_features(0), std::vector<Index>{3});
        EXPECT_EQ(step.step().dead_features(1), std::vector<Index>{2});
        step.train(batch(-1), 0, no_move);
        EXPECT_EQ(step.step().dead_features(1), std::vector<Index>{3});
        EXPECT_EQ(step.step().dead_features(3), std::vector<Index>{0});
        step.evaluate(batch(-1));  // only training counts
        EXPECT_EQ(step.step().dead_features(2), std::vector<Index>{2});
        step.train(batch(1), 0, no_move);
        EXPECT_EQ(step.step().dead_features(0), std::vector<Index>{2});
    });
}

TEST_F(StepCases, ANanUpdatesNothingAndIsSaid) {
    for (const Kind& kind : kinds())
        for (const bool in_input : {true, false}) {
            SCOPED_TRACE(kind.name + (in_input ? ", input" : ", target"));
            const Problem problem = random_problem(kind, {2, 5, 9}, 8, 2, 1000);
            on_every_grid(problem.setup, [&](GridStep& step) {
                step.set(problem.initial);
                step.train(problem.batches[0], 0, 0.01);
                const Parameters before[] = {step.values(), step.moment1(), step.moment2()};
                const std::vector<Index> dead = step.step().dead_features(0);
                Batch broken = problem.batches[1];
                (in_input ? broken.inputs : broken.targets)[17] =
                    std::numeric_limits<double>::quiet_NaN();
                const StepResult result = step.train(broken, 0, 0.01);
                EXPECT_FALSE(result.finite);
                EXPECT_FALSE(result.parameters_broken);
                EXPECT_EQ(result.not_finite,  // width 5, two layers: element 17 is of layer 1
                          in_input ? "the inputs of layer 1" : "the targets of layer 1");
                Parameters after[] = {step.values(), step.moment1(), step.moment2()};
                for (std::size_t i = 0; i < 3; ++i) {
                    Parameters wanted = before[i];
                    const auto arrays = after[i].arrays();
                    const auto expected = wanted.arrays();
                    for (std::size_t a = 0; a < arrays.size(); ++a)
                        EXPECT_EQ(*arrays[a].second, *expected[a].second) << arrays[a].first;
                }
                EXPECT_EQ(step.step().dead_features(0), dead);
                EXPECT_TRUE(step.train(problem.batches[1], 0, 0.01).finite);
            });
        }
}

// min(1, c / norm) is 1 for a norm that is not a number: the clip would let it through.
TEST_F(StepCases, AGradientNormThatIsNotFiniteUpdatesNothing) {
    for (const Kind& kind : kinds()) {
        SCOPED_TRACE(kind.name);
        Problem problem = random_problem(kind, {2, 5, 9}, 8, 2, 1000);
        problem.setup.optimizer.gradient_clip = 1;
        on_every_grid(problem.setup, [&](GridStep& step) {
            // Errors of 1e24 have squares that double holds; their gradients times weights of 1e20
            // overflow float.
            Parameters large = problem.initial;
            for (double& w : large.decoder[1]) w *= 1e20;
            step.set(large);
            Batch batch = problem.batches[0];
            for (double& y : batch.targets) y *= 1e24;
            const Parameters before = step.values();
            const StepResult result = step.train(batch, 0, 0.01);
            EXPECT_TRUE(std::isfinite(result.total));
            EXPECT_FALSE(std::isfinite(result.gradient_norm));
            EXPECT_FALSE(result.finite);
            EXPECT_EQ(result.not_finite, "the gradient of the weights of layer 1");
            Parameters after = step.values();
            Parameters wanted = before;
            for (std::size_t a = 0; a < after.arrays().size(); ++a)
                EXPECT_EQ(*after.arrays()[a].second, *wanted.arrays()[a].second);
            EXPECT_EQ(step.step().not_finite(), "");
        });
    }
}

// The step itself cannot know; not_finite() and the next step do, and name the first.
TEST_F(StepCases, AnUpdateThatBreaksAParameterIsFound) {
    for (const Kind& kind : kinds()) {
        SCOPED_TRACE(kind.name);
        const Problem problem = random_problem(kind, {2, 5, 9}, 8, 2, 1000);
        struct Spoil {
            const char* said;
            std::function<double&(Parameters&)> number;
            double value;
        };
        const double bad = std::numeric_limits<double>::quiet_NaN();
        std::vector<Spoil> spoils{
            {"encoder weights of layer 1, feature 7",
             [](Parameters& p) -> double& { return p.encoder[1][7 * 5 + 2]; }, bad},
            {"decoder rows of layer 0, feature 8",
             [](Parameters& p) -> double& { return p.decoder[0][8 * 10 + 9]; }, bad},
            {"encoder biases of layer 0, feature 3",
             [](Parameters& p) -> double& { return p.encoder_bias[0][3]; }, -bad}};
        if (problem.setup.thresholds())
            spoils.push_back({"thresholds of layer 1, feature 0",
                              [](Parameters& p) -> double& { return p.log_threshold[1][0]; }, 100});
        for (const Spoil& spoil : spoils)
            on_every_grid(problem.setup, [&](GridStep& step) {
                Parameters spoiled = problem.initial;
                spoil.number(spoiled) = spoil.value;
                step.set(spoiled);
                EXPECT_EQ(step.step().not_finite(), "");  // no update has looked at it
                const StepResult first = step.train(problem.batches[0], 0, 0.01);
                if (!first.finite)
                    return;  // it reached the loss: an active feature's row, or a dense product
                const std::string found = step.step().not_finite();
                EXPECT_EQ(found, spoil.said);
                const StepResult result = step.train(problem.batches[1], 0, 0.01);
                EXPECT_FALSE(result.finite);
                EXPECT_TRUE(result.parameters_broken);
                EXPECT_EQ(result.not_finite, spoil.said);
                EXPECT_FALSE(step.evaluate(problem.batches[1]).finite);
            });
    }
}

// Fifty steps from bit-equal parameters: the order of float sums is all that differs, so losses
// stay within 1e-5 and selections stay equal.
TEST_F(StepCases, EveryGridFollowsOneRankForFiftySteps) {
    for (const Kind& kind :
         {Kind{"batchtopk", "batchtopk", 4}, Kind{"topk", "topk", 4, "zscore", true},
          Kind{"jumprelu", "jumprelu"}}) {
        SCOPED_TRACE(kind.name);
        Problem problem = random_problem(kind, {2, 16, 40}, 24, 50, 1100);
        for (Batch& batch : problem.batches) batch.targets = batch.inputs;  // something to learn
        problem.setup.loss.sparsity = 0.05;
        problem.setup.loss.preactivation = 0.01;
        GridStep alone(self, 1, 1, problem.setup);
        std::vector<StepResult> expected;
        for (const Batch& batch : problem.batches)
            expected.push_back(alone.train(batch, 0.05, 3e-3));
        EXPECT_LT(expected.back().total, expected.front().total);
        on_every_grid(problem.setup, [&](GridStep& step) {
            for (std::size_t i = 0; i < expected.size(); ++i) {
                const StepResult got = step.train(problem.batches[i], 0.05, 3e-3);
                EXPECT_TRUE(std::abs(got.total - expected[i].total) <= 1e-5 * expected[i].total)
                    << "step " << i << ": " << got.total << ", one rank " << expected[i].total;
                EXPECT_EQ(sum(got.l0), sum(expected[i].l0)) << "step " << i;
            }
        });
    }
}

}  // namespace
}  // namespace clt::reference
