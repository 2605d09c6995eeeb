#include "reference/step_problem.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace clt::reference {
namespace {

void fill(Vector& values, double low, double high, std::mt19937_64& random) {
    std::uniform_real_distribution<double> uniform(low, high);
    for (double& value : values) value = static_cast<double>(static_cast<float>(uniform(random)));
}

double largest(const Vector& values) {
    double out = 0;
    for (const double value : values) out = std::max(out, std::abs(value));
    return out;
}

/// One rounding of float32 grows with the square root of the terms of the longest sum (encode over
/// d, decode over L F, row gradients over B).
double unit_of(const Problem& problem) {
    const Shape& shape = problem.setup.shape;
    const Index terms = shape.d_model + shape.layers * shape.features + problem.setup.max_tokens;
    return 0x1p-24 * std::sqrt(static_cast<double>(terms));
}

void expect_close(double got, double expected, double allowed, const std::string& what) {
    EXPECT_TRUE(std::abs(got - expected) <= allowed)
        << what << ": " << got << ", oracle " << expected << " +- " << allowed;
}

/// allowed(largest entry of the oracle's array).
template <class Allowed>
void expect_close(Parameters got, Parameters expected, const std::string& what, Allowed allowed) {
    const auto arrays = got.arrays();
    const auto wanted = expected.arrays();
    for (std::size_t a = 0; a < arrays.size(); ++a) {
        const double tolerance = allowed(largest(*wanted[a].second));
        for (std::size_t i = 0; i < arrays[a].second->size(); ++i)
            ASSERT_TRUE(std::abs((*arrays[a].second)[i] - (*wanted[a].second)[i]) <= tolerance)
                << what << " " << arrays[a].first << "[" << i << "]: " << (*arrays[a].second)[i]
                << ", oracle " << (*wanted[a].second)[i] << " +- " << tolerance;
    }
}

}  // namespace

const std::vector<Kind>& kinds() {
    static const std::vector<Kind> all = {
        {"relu_dense", "relu", 0, "raw", false, true},
        {"relu_sparse", "relu"},
        {"jumprelu_dense", "jumprelu", 0, "raw", false, true},
        {"jumprelu_sparse", "jumprelu"},
        {"batchtopk", "batchtopk", 3},
        {"batchtopk_part", "batchtopk", 2.6},
        {"batchtopk_negative", "batchtopk", 4, "raw", true},
        {"batchtopk_zscore", "batchtopk", 3, "zscore"},
        {"batchtopk_zscore_negative", "batchtopk", 4, "zscore", true},
        {"topk", "topk", 3},
        {"topk_negative", "topk", 4, "raw", true},
        {"topk_zscore_negative", "topk", 4, "zscore", true},
        {"topk_fraction", "topk", 0.12, "zscore"},
    };
    return all;
}

void PrintTo(const Kind& kind, std::ostream* out) {
    *out << kind.name;
}

Batch random_batch(const Shape& shape, Index tokens, unsigned seed) {
    std::mt19937_64 random(seed);
    Batch batch;
    batch.tokens = tokens;
    batch.inputs.resize(static_cast<std::size_t>(tokens * shape.layers * shape.d_model));
    batch.targets.resize(batch.inputs.size());
    fill(batch.inputs, -1.7, 1.7, random);  // variance about 1
    fill(batch.targets, -1.7, 1.7, random);
    return batch;
}

Problem random_problem(const Kind& kind, const Shape& shape, Index tokens, Index steps,
                       unsigned seed) {
    Problem out{.setup = {},
                .initial = Parameters(shape, kind.activation == "jumprelu"),
                .batches = {},
                .dense = {}};
    out.setup.shape = shape;
    out.setup.max_tokens = tokens;
    ModelConfig& model = out.setup.model;
    model.features = shape.features;
    model.activation = kind.activation;
    model.k = kind.k;
    model.ranking = kind.ranking;
    model.keep_negative = kind.keep_negative;
    out.setup.optimizer.epsilon = 1e-3;

    std::mt19937_64 random(seed);
    const double width = std::sqrt(3.0 / static_cast<double>(shape.d_model));
    for (Vector& values : out.initial.encoder) fill(values, -width, width, random);  // p: about 1
    for (Vector& values : out.initial.decoder) fill(values, -0.5, 0.5, random);
    fill(out.initial.decoder_bias, -0.2, 0.2, random);
    // Sparse: a bias of -2 standard deviations leaves some percent active.
    const bool sparse = (kind.activation == "relu" || kind.activation == "jumprelu") && !kind.dense;
    for (Vector& values : out.initial.encoder_bias)
        sparse ? fill(values, -2.1, -1.9, random) : fill(values, -0.3, 0.3, random);
    for (Vector& values : out.initial.log_threshold) fill(values, -2.5, -1.5, random);
    model.bandwidth = sparse ? 0.3 : 1.0;

    for (Index step = 0; step < steps; ++step)
        out.batches.push_back(
            random_batch(shape, tokens, seed + 1000 + static_cast<unsigned>(step)));
    return out;
}

void expect_follows_oracle(const Communicator& world, int data, int feature,
                           const Problem& problem) {
    const RunSetup& setup = problem.setup;
    SCOPED_TRACE(fmt::format("grid {} x {}, B {}, L {}, F {}, d {}", data, feature,
                             setup.max_tokens, setup.shape.layers, setup.shape.features,
                             setup.shape.d_model));
    GridStep step(world, data, feature, setup);
    step.set(problem.initial);
    const DenseClt oracle = setup.oracle();
    Parameters params = problem.initial;
    Optimizer optimizer(setup.optimizer, setup.shape, setup.thresholds());
    const double unit = unit_of(problem);
    const auto steps = static_cast<double>(problem.batches.size());
    double largest_gradient = 0;
    for (std::size_t i = 0; i < problem.batches.size(); ++i) {
        SCOPED_TRACE("step " + std::to_string(i));
        const Batch& batch = problem.batches[i];
        const StepResult got = step.train(batch, problem.lambda, problem.learning_rate);
        const Forward forward = oracle.forward(params, batch, problem.lambda);
        Parameters gradient = oracle.gradient(params, batch, forward, problem.lambda);
        for (const auto& [name, values] : gradient.arrays())
            largest_gradient = std::max(largest_gradient, largest(*values));
        const double norm = optimizer.step(params, gradient, problem.learning_rate);

        EXPECT_TRUE(got.finite);
        const Losses& losses = forward.losses;
        const double allowed = 32 * unit * (1 + losses.total);  // values are of order 1
        expect_close(got.reconstruction, losses.reconstruction, allowed, "reconstruction");
        expect_close(got.sparsity, losses.sparsity, allowed, "sparsity");
        expect_close(got.preactivation, losses.preactivation, allowed, "preactivation");
        expect_close(got.total, losses.total, allowed, "total");
        if (setup.optimizer.gradient_clip > 0)
            expect_close(got.gradient_norm, norm, 32 * unit * norm, "gradient norm");
        for (Index l = 0; l < setup.shape.layers; ++l) {
            const auto layer = static_cast<std::size_t>(l);
            expect_close(got.squared_error[layer], losses.squared_error[layer],
                         allowed * static_cast<double>(batch.tokens * setup.shape.d_model),
                         "squared error");
            Index active = 0;
            for (Index b = 0; b < batch.tokens; ++b)
                for (Index f = 0; f < setup.shape.features; ++f)
                    active += forward.activation[static_cast<std::size_t>(
                                  (b * setup.shape.layers + l) * setup.shape.features + f)] != 0
                                  ? 1
                                  : 0;
            EXPECT_EQ(got.l0[layer],
                      static_cast<double>(active) / static_cast<double>(batch.tokens))
                << "layer " << l;
        }
        EXPECT_EQ(got.dense, problem.dense.value_or(got.dense));
    }
    EXPECT_TRUE(step.replicas_agree());
    // A gradient's error: three products and a residual bring a few units each, and each step
    // starts from parameters already off.
    const auto moment = [&](double power) {
        return [=](double) { return 32 * unit * steps * power; };
    };
    expect_close(step.moment1(), optimizer.moment1, "moment1", moment(largest_gradient));
    expect_close(step.moment2(), optimizer.moment2, "moment2",
                 moment(largest_gradient * largest_gradient));
    const double moved =
        problem.learning_rate / setup.optimizer.epsilon * 32 * unit * steps * largest_gradient;
    expect_close(step.values(), params, "value",
                 [=](double scale) { return moved + 4 * 0x1p-24 * scale; });
}

}  // namespace clt::reference
