// Holds the oracle to central finite differences: every gradient of every activation and loss.
#include "reference/dense_clt.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace clt::reference {
namespace {

struct Problem {
    std::string name;
    std::string activation;
    double k = 0;
    std::string ranking = "raw";
    bool keep_negative = false;
    double sparsity = 0;
    std::string reduction = "mean";
    double preactivation = 0;
    bool scaled = false;
};

constexpr Shape shape{3, 4, 5};
constexpr Index tokens = 6;

ModelConfig model_of(const Problem& problem) {
    ModelConfig model;
    model.features = shape.features;
    model.activation = problem.activation;
    model.k = problem.k;
    model.ranking = problem.ranking;
    model.keep_negative = problem.keep_negative;
    model.bandwidth = 0.6;
    return model;
}

LossConfig loss_of(const Problem& problem) {
    LossConfig loss;
    loss.sparsity = problem.sparsity;
    loss.sparsity_scale = 1.3;
    loss.sparsity_reduction = problem.reduction;
    loss.preactivation = problem.preactivation;
    return loss;
}

void fill(Vector& values, double low, double high, std::mt19937_64& random) {
    std::uniform_real_distribution<double> uniform(low, high);
    for (double& value : values) value = uniform(random);
}

class FiniteDifferences : public testing::TestWithParam<Problem> {
  protected:
    FiniteDifferences() {
        std::mt19937_64 random(7);
        for (auto& [name, values] : params.arrays()) fill(*values, -0.8, 0.8, random);
        for (Vector& values : params.log_threshold) fill(values, -1.6, -0.4, random);
        batch.tokens = tokens;
        batch.inputs.resize(static_cast<std::size_t>(tokens * shape.layers * shape.d_model));
        batch.targets.resize(batch.inputs.size());
        fill(batch.inputs, -1.5, 1.5, random);
        fill(batch.targets, -1.5, 1.5, random);
    }

    // The loss at moved parameters, with the selected set of the base point.
    double loss_at(const Forward& base, double lambda) const {
        const Vector pre = clt.encode(params, batch);
        Vector activation(pre.size());
        for (std::size_t i = 0; i < pre.size(); ++i) activation[i] = base.on[i] ? pre[i] : 0;
        return clt.losses(params, batch, pre, activation, lambda).total;
    }

    static Vector scale() {
        Vector out(static_cast<std::size_t>(shape.layers * shape.d_model), 1.0);
        std::mt19937_64 random(8);
        if (GetParam().scaled) fill(out, 0.3, 2.5, random);
        return out;
    }

    Parameters params{shape, GetParam().activation == "jumprelu"};
    Batch batch;
    DenseClt clt{shape, model_of(GetParam()), loss_of(GetParam()), scale()};
};

// Step 1e-5: truncation ~ h^2 |f'''| ~ 1e-10, rounding ~ 1e-16 |f| / h ~ 1e-10 at losses ~ 10.
constexpr double difference_step = 1e-5;
constexpr double tolerance = 1e-8;

TEST_P(FiniteDifferences, EveryWeightAndBias) {
    const double lambda = GetParam().sparsity;
    const Forward base = clt.forward(params, batch, lambda);
    ASSERT_GT(std::count(base.on.begin(), base.on.end(), true), 0);
    ASSERT_LT(std::count(base.on.begin(), base.on.end(), true),
              static_cast<std::ptrdiff_t>(base.on.size()));
    Parameters gradient = clt.gradient(params, batch, base, lambda);
    const auto gradients = gradient.arrays();
    const auto arrays = params.arrays();
    for (std::size_t a = 0; a < arrays.size(); ++a) {
        if (arrays[a].first.starts_with("log_threshold/")) continue;
        for (std::size_t i = 0; i < arrays[a].second->size(); ++i) {
            double& p = (*arrays[a].second)[i];
            const double kept = p;
            p = kept + difference_step;
            const double above = loss_at(base, lambda);
            p = kept - difference_step;
            const double below = loss_at(base, lambda);
            p = kept;
            const double expected = (above - below) / (2 * difference_step);
            const double difference = std::abs((*gradients[a].second)[i] - expected);
            EXPECT_TRUE(difference <= tolerance)
                << arrays[a].first << "[" << i << "]: " << (*gradients[a].second)[i]
                << ", finite differences " << expected;
        }
    }
}

// A threshold's true derivative is 0 almost everywhere; straight through it is
// theta * sum over the window of dL/da * (-p / h), with dL/da by finite differences here.
TEST_P(FiniteDifferences, ThresholdsStraightThrough) {
    if (GetParam().activation != "jumprelu") return;
    const double lambda = GetParam().sparsity;
    Forward base = clt.forward(params, batch, lambda);
    const Parameters gradient = clt.gradient(params, batch, base, lambda);
    const double bandwidth = model_of(GetParam()).bandwidth;
    Index in_window = 0;
    for (Index l = 0; l < shape.layers; ++l)
        for (Index f = 0; f < shape.features; ++f) {
            const auto layer = static_cast<std::size_t>(l);
            const double theta = std::exp(params.log_threshold[layer][static_cast<std::size_t>(f)]);
            double expected = 0;
            for (Index b = 0; b < tokens; ++b) {
                const auto e =
                    static_cast<std::size_t>((b * shape.layers + l) * shape.features + f);
                if (std::abs(base.pre[e] - theta) > bandwidth / 2) continue;
                ++in_window;
                double& a = base.activation[e];
                const double kept = a;
                a = kept + difference_step;
                const double above =
                    clt.losses(params, batch, base.pre, base.activation, lambda).total;
                a = kept - difference_step;
                const double below =
                    clt.losses(params, batch, base.pre, base.activation, lambda).total;
                a = kept;
                expected += (above - below) / (2 * difference_step) * (-base.pre[e] / bandwidth);
            }
            const double got = gradient.log_threshold[layer][static_cast<std::size_t>(f)];
            EXPECT_TRUE(std::abs(got - theta * expected) <= tolerance)
                << "layer " << l << " feature " << f << ": " << got << ", expected "
                << theta * expected;
        }
    EXPECT_GT(in_window, 5);
}

std::vector<Problem> problems() {
    const std::vector<Problem> activations = {
        {"relu", "relu"},
        {"jumprelu", "jumprelu"},
        {"batchtopk", "batchtopk", 4},
        {"batchtopk_negative", "batchtopk", 9, "raw", true},
        {"batchtopk_zscore", "batchtopk", 4, "zscore"},
        {"batchtopk_zscore_negative", "batchtopk", 9, "zscore", true},
        {"topk", "topk", 4},
        {"topk_negative", "topk", 9, "raw", true},
        {"topk_fraction_zscore", "topk", 0.3, "zscore"}};
    std::vector<Problem> all;
    for (const Problem& base : activations)
        for (const bool full : {false, true}) {
            Problem problem = base;
            if (full) {
                problem.sparsity = 0.2;
                problem.preactivation = 0.4;
                problem.scaled = true;
                problem.name += "_penalties";
                if (problem.keep_negative) problem.reduction = "sum";
            }
            all.push_back(problem);
        }
    return all;
}

INSTANTIATE_TEST_SUITE_P(All, FiniteDifferences, testing::ValuesIn(problems()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace clt::reference
