// The golden files of the Python reference against the oracle and against the production step on
// every grid of the ranks given. CLT_GOLDEN_DIR names another folder of such files.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>

#include "clt/train/metrics.hpp"
#include "golden/golden_case.hpp"

namespace clt::reference {
namespace {

// The reference ran in float32: 2e-5 of a tensor's largest entry is about 170 roundings, what sums
// of a few hundred terms with cancellation leave.
constexpr double tolerance = 2e-5;

double largest(const Vector& values) {
    double out = 0;
    for (const double value : values) out = std::max(out, std::abs(value));
    return out;
}

void expect_near(const Vector& got, const Vector& golden, const std::string& what) {
    ASSERT_EQ(got.size(), golden.size()) << what;
    const double allowed = tolerance * largest(golden);
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_TRUE(std::abs(got[i] - golden[i]) <= allowed)
            << what << "[" << i << "]: " << got[i] << ", golden " << golden[i] << " +- " << allowed;
}

void expect_near(double got, double golden, const std::string& what) {
    EXPECT_TRUE(std::abs(got - golden) <= tolerance * std::abs(golden))
        << what << ": " << got << ", golden " << golden;
}

void expect_near(Parameters got, Parameters golden, const std::string& what) {
    const auto arrays = got.arrays();
    const auto expected = golden.arrays();
    for (std::size_t a = 0; a < arrays.size(); ++a)
        expect_near(*arrays[a].second, *expected[a].second, what + " " + arrays[a].first);
}

template <class Losses>
void expect_losses(const Losses& got, const GoldenStep& golden, std::size_t i) {
    const std::string step = "step " + std::to_string(i) + " ";
    expect_near(got.total, golden.losses.total, step + "total");
    expect_near(got.reconstruction, golden.losses.reconstruction, step + "reconstruction");
    expect_near(got.sparsity, golden.losses.sparsity, step + "sparsity");
    expect_near(got.preactivation, golden.losses.preactivation, step + "preactivation");
}

// Adam blows up the rounding of a gradient near zero: one element in a thousand may be off by as
// much as Adam can move it both ways. A target's t + 1 summed biases move that many times as far.
void expect_trained(Parameters got, const GoldenCase& golden) {
    Parameters expected = *golden.trained;
    const auto arrays = got.arrays();
    const auto golden_arrays = expected.arrays();
    const Index d = got.shape.d_model;
    Index elements = 0;
    Index off = 0;
    for (std::size_t a = 0; a < arrays.size(); ++a) {
        const Vector& values = *arrays[a].second;
        const Vector& wanted = *golden_arrays[a].second;
        const double allowed = tolerance * largest(wanted);
        for (std::size_t i = 0; i < values.size(); ++i, ++elements) {
            const double difference = std::abs(values[i] - wanted[i]);
            if (difference <= allowed) continue;
            ++off;
            const double copies = arrays[a].first == "decoder/bias"
                                      ? static_cast<double>(static_cast<Index>(i) / d + 1)
                                      : 1;
            EXPECT_TRUE(difference <= 2 * copies * golden.learning_rate *
                                          static_cast<double>(golden.steps.size()))
                << arrays[a].first << "[" << i << "]: " << values[i] << ", golden " << wanted[i];
        }
    }
    EXPECT_LE(off, elements / 1000) << "of " << elements << " elements";
}

// Runs `check` on every file of that kind whose features are built.
void for_each_case(bool metrics, const std::function<void(const GoldenCase&)>& check) {
    for (const std::string& path : golden_files()) {
        if (!missing_feature(path).empty() || is_metrics(path) != metrics) continue;
        SCOPED_TRACE(path);
        check(read_golden(path));
    }
}

TEST(Golden, NamesWhatItSkips) {
    const bool speaks = Communicator::world().rank() == 0;
    std::size_t run = 0;
    for (const std::string& path : golden_files()) {
        const std::string missing = missing_feature(path);
        if (missing.empty())
            ++run;
        else if (speaks)
            std::printf("not run: %s (%s)\n", path.c_str(), missing.c_str());
    }
    EXPECT_GT(run, 0U) << "no golden file was run";
}

void check_oracle(const GoldenCase& golden) {
    const DenseClt clt = golden.setup.oracle();
    Parameters params = golden.initial;
    Optimizer optimizer(golden.setup.optimizer, golden.setup.shape, golden.setup.thresholds());
    for (std::size_t i = 0; i < golden.steps.size(); ++i) {
        const GoldenStep& step = golden.steps[i];
        const Forward forward = clt.forward(params, step.batch, step.lambda);
        const Parameters gradient = clt.gradient(params, step.batch, forward, step.lambda);
        expect_losses(forward.losses, step, i);
        if (i == 0) {
            expect_near(forward.activation, golden.activation, "activations");
            expect_near(forward.reconstruction, golden.reconstruction, "reconstructions");
            expect_near(gradient, *golden.gradient, "gradient");
        }
        const double norm = optimizer.step(params, gradient, golden.learning_rate);
        if (step.gradient_norm >= 0) expect_near(norm, step.gradient_norm, "gradient norm");
    }
    expect_trained(params, golden);
}

void check_step(const GoldenCase& golden) {
    const Communicator world = Communicator::world();
    const Batch& first = golden.steps[0].batch;
    for (const auto& [data, feature] : grids_of(world.size())) {
        SCOPED_TRACE(fmt::format("grid {} x {}", data, feature));
        {
            // With beta1 = 0 Adam's first moment is the gradient.
            RunSetup setup = golden.setup;
            setup.optimizer.beta1 = 0;
            setup.optimizer.gradient_clip = 0;
            GridStep step(world, data, feature, setup);
            step.set(golden.initial);
            expect_near(step.activation(first), golden.activation, "activations");
            expect_near(step.reconstruction(first), golden.reconstruction, "reconstructions");
            step.train(first, golden.steps[0].lambda, golden.learning_rate);
            expect_near(step.moment1(), *golden.gradient, "gradient");
        }
        GridStep step(world, data, feature, golden.setup);
        step.set(golden.initial);
        for (std::size_t i = 0; i < golden.steps.size(); ++i) {
            const GoldenStep& wanted = golden.steps[i];
            const StepResult result = step.train(wanted.batch, wanted.lambda, golden.learning_rate);
            expect_losses(result, wanted, i);
            if (wanted.gradient_norm >= 0)
                expect_near(result.gradient_norm, wanted.gradient_norm, "gradient norm");
        }
        EXPECT_TRUE(step.replicas_agree());
        expect_trained(step.values(), golden);
    }
}

// The evaluator's numbers are shares and logarithms: 2e-5 absolute, or relative above 1.
void check_metrics(const GoldenCase& golden) {
    const Communicator world = Communicator::world();
    const Shape& shape = golden.setup.shape;
    const auto expect = [&](double got, const std::string& key) {
        const double wanted = golden.metrics.at(key);
        EXPECT_TRUE(std::abs(got - wanted) <= tolerance * std::max(1.0, std::abs(wanted)))
            << key << ": " << got << ", golden " << wanted;
    };
    for (const auto& [data, feature] : grids_of(world.size())) {
        SCOPED_TRACE(fmt::format("grid {} x {}", data, feature));
        GridStep step(world, data, feature, golden.setup);
        step.set(golden.initial);
        const Step::EvaluationSums sums = step.sums(golden.steps[0].batch);
        const Evaluation got = evaluation_of(sums, shape);
        expect(got.explained_variance, "reconstruction/explained_variance");
        expect(got.nmse, "reconstruction/normalized_mean_reconstruction_error");
        expect(got.l0, "sparsity/total_l0");
        expect(got.l0_mean, "sparsity/avg_l0");
        expect(got.sparsity_fraction, "sparsity/sparsity_fraction");
        expect(got.log10_density_mean, "sparsity/feature_density_mean");
        expect(got.active_tokens_mean, "sparsity/consistent_activation_heuristic_mean");
        for (Index l = 0; l < shape.layers; ++l) {
            const LayerEvaluation& layer = got.layers[static_cast<std::size_t>(l)];
            const std::string name = "layer_" + std::to_string(l);
            const auto expect_layer = [&](double value, const std::string& key) {
                const double wanted = golden.metrics.at("layerwise/" + key).at(name);
                EXPECT_TRUE(std::abs(value - wanted) <= tolerance * std::max(1.0, std::abs(wanted)))
                    << key << " " << name << ": " << value << ", golden " << wanted;
            };
            expect_layer(layer.nmse, "normalized_mse");
            expect_layer(layer.explained_variance, "explained_variance");
            expect_layer(layer.l0, "l0");
            const Vector density =
                golden.metrics.at("layerwise/log_feature_density").at(name).get<Vector>();
            for (Index f = 0; f < shape.features; ++f) {
                const auto fired = static_cast<double>(
                    sums.fired_tokens[static_cast<std::size_t>(l * shape.features + f)]);
                const double value = std::log10(fired / static_cast<double>(sums.tokens) + 1e-10);
                EXPECT_TRUE(std::abs(value - density[static_cast<std::size_t>(f)]) <= tolerance)
                    << name << " feature " << f;
            }
        }
    }
}

TEST(Golden, OracleAgrees) {
    for_each_case(false, check_oracle);
}
TEST(Golden, StepAgreesOnEveryGrid) {
    for_each_case(false, check_step);
}
TEST(Golden, EvaluationAgreesOnEveryGrid) {
    for_each_case(true, check_metrics);
}

}  // namespace
}  // namespace clt::reference
