// The oracle against the numbers the Python reference gave: reference-cases C1 to C8 and C16.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "reference/dense_clt.hpp"

namespace clt::reference {
namespace {

// The stated tolerance of the cases.
void expect_close(double got, double expected, const std::string& what = {}) {
    EXPECT_TRUE(std::abs(got - expected) <= 1e-5 * std::abs(expected) + 1e-6)
        << what << ": " << got << ", expected " << expected;
}
void expect_close(const Vector& got, const Vector& expected, const std::string& what = {}) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i)
        expect_close(got[i], expected[i], what + "[" + std::to_string(i) + "]");
}

Vector masked(const Vector& values, const std::vector<bool>& kept) {
    Vector out(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) out[i] = kept[i] ? values[i] : 0;
    return out;
}

DenseClt dense(const Shape& shape, const std::string& activation, double k = 0,
               const std::string& ranking = "raw", bool keep_negative = true) {
    ModelConfig model;
    model.features = shape.features;
    model.activation = activation;
    model.k = k;
    model.ranking = ranking;
    model.keep_negative = keep_negative;
    return {shape, model, {}, Vector(static_cast<std::size_t>(shape.layers * shape.d_model), 1.0)};
}

Vector selected(const DenseClt& clt, const Shape& shape, const Vector& pre, Index tokens) {
    return masked(pre, clt.select(Parameters(shape, false), pre, tokens));
}

TEST(C1, KeepsTheLargestOfTheBlock) {
    const Shape shape{1, 1, 4};
    const Vector x = {1, 2, 3, 4, 5, 1, 2.5, 3.5};
    const auto keep = [&](double k) { return selected(dense(shape, "batchtopk", k), shape, x, 2); };
    EXPECT_EQ(keep(2), (Vector{0, 0, 3, 4, 5, 0, 0, 3.5}));
    EXPECT_EQ(keep(0), Vector(8, 0.0));
    EXPECT_EQ(keep(4), x);
    EXPECT_EQ(keep(5), x);
    EXPECT_TRUE(keep_largest({}, {}, 3).empty());
    const std::vector<bool> all(8, true);
    const std::vector<bool> second = keep_largest({0, 0, 0, 0, 5, 6, 7, 8}, all, 4);
    EXPECT_EQ(second, (std::vector<bool>{false, false, false, false, true, true, true, true}));
    EXPECT_EQ(masked({1, 2, 3, 4, 0, 0, 0, 0}, second), Vector(8, 0.0));
    // Of equals the lower (token, layer, feature).
    EXPECT_EQ(keep_largest(Vector(8, 1.0), all, 2),
              (std::vector<bool>{true, true, false, false, false, false, false, false}));
}

// C2 and C3, [B, L, F]: p0 and p1 side by side.
const Shape two_layers{2, 1, 2};
const Vector preactivations = {0, -1, 10, 5, 0, -2, 10.5, 7, 3, -3, 13, 5.5};

TEST(C2, BatchTopKRanksByZScoreOverAllLayers) {
    const DenseClt one = dense(two_layers, "batchtopk", 1, "zscore");
    const Vector z = one.scores(preactivations, 3);
    expect_close(z, {-0.577350, 0.999999, -0.725866, -0.800640, -0.577350, 0, -0.414781, 1.120896,
                     1.154700, -0.999999, 1.140646, -0.320256});
    EXPECT_EQ(selected(one, two_layers, preactivations, 3),
              (Vector{0, 0, 0, 0, 0, 0, 0, 7, 3, 0, 13, 0}));
    EXPECT_EQ(selected(dense(two_layers, "batchtopk", 2, "zscore"), two_layers, preactivations, 3),
              (Vector{0, -1, 0, 0, 0, -2, 0, 7, 3, 0, 13, 5.5}));
    EXPECT_EQ(selected(dense(two_layers, "batchtopk", 1), two_layers, preactivations, 3),
              (Vector{0, 0, 10, 0, 0, 0, 10.5, 0, 0, 0, 13, 0}));
}

TEST(C3, TopKKeepsByTokenOverAllLayers) {
    const auto keep = [&](double k) {
        return selected(dense(two_layers, "topk", k, "zscore"), two_layers, preactivations, 3);
    };
    EXPECT_EQ(keep(1), (Vector{0, -1, 0, 0, 0, 0, 0, 7, 3, 0, 0, 0}));
    EXPECT_EQ(keep(0.5), (Vector{0, -1, 0, 0, 0, -2, 0, 7, 3, 0, 13, 0}));
    EXPECT_EQ(keep(3), (Vector{0, -1, 10, 0, 0, -2, 10.5, 7, 3, 0, 13, 5.5}));
    EXPECT_EQ(keep(0), Vector(12, 0.0));

    const Shape five{1, 1, 5};
    const auto kept = [&](double k) {
        const auto on = dense(five, "topk", k).select(Parameters(five, false), {5, 4, 3, 2, 1}, 1);
        return std::count(on.begin(), on.end(), true);
    };
    EXPECT_EQ(kept(0.6), 3);
    EXPECT_EQ(kept(0.5), 3);
    EXPECT_EQ(kept(1.0), 1);
}

// One layer, as many tokens as dimensions. Inputs are one-hot, so that the encoder holds the
// pre-activations and its gradient dL/dp by entry; the decoder is the identity and the targets are
// chosen so that dL/da is `upstream`. All [B, n], B = d = F = n.
struct Entrywise {
    Vector activation;
    Vector dp;
    Vector dlog_threshold;
};
Entrywise jumprelu_entries(Index n, const Vector& pre, const Vector& upstream, double theta,
                           double bandwidth) {
    const Shape shape{1, n, n};
    ModelConfig model;
    model.activation = "jumprelu";
    model.bandwidth = bandwidth;
    const auto size = static_cast<std::size_t>(n * n);
    const DenseClt clt(shape, model, {}, Vector(static_cast<std::size_t>(n), 1.0));
    Parameters params(shape, true);
    Batch batch{n, Vector(size), Vector(size)};
    for (Index i = 0; i < n; ++i) {
        params.log_threshold[0][static_cast<std::size_t>(i)] = std::log(theta);
        params.decoder[0][static_cast<std::size_t>(i * n + i)] = 1;
        batch.inputs[static_cast<std::size_t>(i * n + i)] = 1;
        for (Index b = 0; b < n; ++b)
            params.encoder[0][static_cast<std::size_t>(i * n + b)] =
                pre[static_cast<std::size_t>(b * n + i)];
    }
    Entrywise out;
    out.activation = clt.forward(params, batch, 0).activation;
    for (std::size_t i = 0; i < size; ++i)
        batch.targets[i] = out.activation[i] - upstream[i] * static_cast<double>(n * n) / 2;
    const Parameters gradient = clt.gradient(params, batch, clt.forward(params, batch, 0), 0);
    out.dp.resize(size);
    for (Index b = 0; b < n; ++b)
        for (Index i = 0; i < n; ++i)
            out.dp[static_cast<std::size_t>(b * n + i)] =
                gradient.encoder[0][static_cast<std::size_t>(i * n + b)];
    out.dlog_threshold = gradient.log_threshold[0];
    return out;
}

TEST(C5, JumpReluForwardAndBackward) {
    const Entrywise got = jumprelu_entries(3, {0.4, 0.5, 0.6, -0.2, 1.0, 1.01, 0, 2, 0.75},
                                           {1, 2, 3, 1, 1, 1, 10, 1, -1}, 0.5, 1.0);
    // exp(log 0.5) is 0.5 to the last bit, so that 0.5 itself passes.
    EXPECT_EQ(got.activation, (Vector{0, 0.5, 0.6, 0, 1, 1.01, 0, 2, 0.75}));
    expect_close(got.dp, {0, 2, 3, 0, 1, 1, 0, 1, -1}, "dp");
    expect_close(got.dlog_threshold, {-0.2, -1.0, -0.525}, "dlog_threshold");
}

TEST(C5, JumpReluScalarTable) {
    struct Row {
        double x, theta, bandwidth, dx, dtheta;
    };
    for (const Row& row : {Row{0.8, 1, 1, 0, -0.8}, Row{1.0, 1, 1, 1, -1}, Row{1.2, 1, 1, 1, -1.2},
                           Row{0.8, 1, 2, 0, -0.4}, Row{1.0, 1, 2, 1, -0.5},
                           Row{1.2, 1, 2, 1, -0.6}, Row{0, 1, 1, 0, 0}, Row{2, 1, 1, 1, 0},
                           Row{0, 1, 2, 0, 0}, Row{2, 1, 2, 1, -1}, Row{-0.2, 1e-9, 1, 0, 0.2}}) {
        const Entrywise got = jumprelu_entries(1, {row.x}, {1}, row.theta, row.bandwidth);
        const std::string what = "x = " + std::to_string(row.x);
        expect_close(got.dp[0], row.dx, what + " dx");
        expect_close(got.dlog_threshold[0] / row.theta, row.dtheta, what + " dtheta");
    }
}

// [B, L, F] = [2, 2, 2], d = 2.
const Shape pair{2, 2, 2};
Parameters c6_parameters() {
    Parameters params(pair, false);
    params.decoder[0] = {3, 4, 0, 0, 0, 1, 2, 2};  // row f: its target 0, its target 1
    params.decoder[1] = {1, 0, 0, 0.5};
    return params;
}

TEST(C6, DecoderNormsAndPenalty) {
    LossConfig loss;
    loss.sparsity_scale = 1.5;
    loss.sparsity_reduction = "sum";
    const Vector activation = {0.1, 0, 0, 2, 0.2, 0.5, 1, -1};
    const Batch batch{2, Vector(8), Vector(8)};
    const DenseClt clt(pair, {}, loss, Vector(4, 1.0));
    const Parameters params = c6_parameters();
    expect_close(clt.decoder_norms(params), {5, 3, 1, 0.5});
    const auto penalty = [&](double lambda) {
        return clt.losses(params, batch, Vector(8), activation, lambda).sparsity;
    };
    EXPECT_EQ(penalty(0), 0);
    expect_close(penalty(5e-4), 0.0018467356);
    expect_close(penalty(2e-3), 0.0073869424);
    expect_close(penalty(1), 3.6934712);
    loss.sparsity_reduction = "mean";
    const DenseClt mean(pair, {}, loss, Vector(4, 1.0));
    expect_close(mean.losses(params, batch, Vector(8), activation, 1).sparsity, 3.6934712 / 2);
}

TEST(C6, AZeroDecoderRowAddsNothing) {
    LossConfig loss;
    loss.sparsity_reduction = "sum";
    ModelConfig model;
    model.activation = "relu";
    const DenseClt clt(pair, model, loss, Vector(4, 1.0));
    Parameters params(pair, false);
    for (Vector& bias : params.encoder_bias) bias = {1, 2};
    const Batch batch{2, Vector(8), Vector(8)};
    const Forward forward = clt.forward(params, batch, 1);
    EXPECT_EQ(forward.losses.sparsity, 0);
    Parameters gradient = clt.gradient(params, batch, forward, 1);
    for (const auto& [name, values] : gradient.arrays())
        EXPECT_EQ(*values, Vector(values->size(), 0.0)) << name;
}

TEST(C7, PreactivationLoss) {
    LossConfig loss;
    loss.preactivation = 3e-6;
    const DenseClt clt(pair, {}, loss, Vector(4, 1.0));
    Parameters params(pair, false);
    for (Vector& encoder : params.encoder) encoder = {1, 0, 0, -1};
    for (Vector& bias : params.encoder_bias) bias = {0, 0.5};
    const Batch batch{2, {-1, 2, 0, 0, 3, 0, -2, -1}, Vector(8)};
    const Vector pre = clt.encode(params, batch);
    expect_close(pre, {-1, -1.5, 0, 0.5, 3, 0.5, -2, 1.5});
    const double got = clt.losses(params, batch, pre, Vector(8), 0).preactivation;
    EXPECT_TRUE(std::abs(got - 1.6875e-6) <= 1e-11) << got;
    loss.preactivation = 1;
    expect_close(DenseClt(pair, {}, loss, Vector(4, 1.0))
                     .losses(params, batch, {-0.5, 0.5, 1, 2, -0.2, 0.8, 3, 4}, Vector(8), 0)
                     .preactivation,
                 0.0875);
}

TEST(C8, ReconstructionLossInEverySpace) {
    // One-hot activations: token b's feature b alone, whose decoder row is its reconstruction.
    Parameters params(pair, false);
    params.decoder[0] = {1, 2, 0, 0, 3, 4, 0, 0};
    params.decoder[1] = {0, 0, 1, 1};
    const Vector activation = {1, 0, 1, 0, 0, 1, 0, 1};
    const Batch batch{2, Vector(8), {1, 1, 1, 0, 1, 4, 0, 3}};
    const auto loss = [&](const Vector& scale) {
        return DenseClt(pair, {}, {}, scale)
            .losses(params, batch, Vector(8), activation, 0)
            .reconstruction;
    };
    expect_close(loss(Vector(4, 1.0)), 2.75, "none");
    expect_close(loss({2, 0.5, 1, 3}), 13.5625, "mean_std");
    expect_close(loss(Vector(4, 1 / std::sqrt(2.0))), 1.375, "sqrt_d_model");
}

TEST(C16, ThreeSteps) {
    ModelConfig model;
    model.activation = "relu";
    LossConfig loss;
    loss.sparsity_reduction = "sum";
    loss.preactivation = 0.003;
    const DenseClt clt(pair, model, loss, Vector(4, 1.0));
    Parameters params(pair, false);
    params.encoder = {{1, 0, 0, 1}, {1, 1, 1, -1}};
    params.decoder = {{1, 0, 0.5, 0, 0, 1, 0, 0.5}, {1, 0, 0, 1}};
    const Batch batch{2, {1, -1, 0.5, 0.5, 2, 0.5, -1, 1}, {1, 0, 0, 1, 1, 1, 2, 0}};
    OptimizerConfig config;
    config.reference_biases = true;
    Optimizer optimizer(config, pair, false);
    const double expected[3][4] = {{1.39174998, 1.390625, 0, 0.001125},
                                   {0.82267684, 0.81858671, 0.00307878, 0.00101138},
                                   {0.62372392, 0.61687505, 0.00582995, 0.00101895}};
    for (int t = 0; t < 3; ++t) {
        const double lambda = 0.01 * t / 10;
        const Forward forward = clt.forward(params, batch, lambda);
        const std::string step = "step " + std::to_string(t);
        expect_close(forward.losses.total, expected[t][0], step);
        expect_close(forward.losses.reconstruction, expected[t][1], step);
        expect_close(forward.losses.sparsity, expected[t][2], step);
        expect_close(forward.losses.preactivation, expected[t][3], step);
        if (t == 0) {
            EXPECT_EQ(forward.activation, (Vector{1, 0, 1, 0, 2, 0.5, 0, 0}));
            EXPECT_EQ(forward.reconstruction, (Vector{1, 0, 1.5, 0, 2, 0.5, 1, 0.25}));
        }
        const Parameters gradient = clt.gradient(params, batch, forward, lambda);
        const double norm = optimizer.step(params, gradient, 0.1);
        if (t == 1) {
            expect_close(norm, 1.3357412, "norm");
            expect_close(gradient.encoder[0], {-0.1492251, -0.1005660, 0.3695959, 0.0928677});
            expect_close(gradient.encoder_bias[1], {0.3940078, -0.2742621});
            // The reference prints [d, F]; a row here is a feature.
            const Vector& row = gradient.decoder[0];
            expect_close({row[2], row[6], row[3], row[7]},
                         {-0.6047543, -0.4532306, 0.4319097, 0.3034668});
            expect_close({gradient.decoder_bias[2], gradient.decoder_bias[3]},
                         {-0.0648862, 0.0819363});
        }
    }
    const auto near = [](double got, double want) {
        EXPECT_TRUE(std::abs(got - want) <= 1e-4) << got << ", expected " << want;
    };
    near(params.encoder[0][0], 0.8527851);
    near(params.encoder[0][1], 0.2653533);
    near(params.encoder[0][2], 0.0623663);
    near(params.encoder[0][3], 1.0583700);
    near(params.decoder[1][0], 0.7212883);
    near(params.decoder[1][2], -0.1597933);
    near(params.decoder[1][1], 0.2706834);
    near(params.decoder[1][3], 1.1571176);
    near(params.decoder_bias[0], -0.1593498);
    near(params.decoder_bias[1], 0.0787410);
}

}  // namespace
}  // namespace clt::reference
