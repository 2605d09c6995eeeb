// The language model's kernels, one by one.
#include <algorithm>

#include "backend/backend_test.hpp"

namespace clt::test {
namespace {

class LanguageModel : public BackendTest {};
CLT_ON_THE_TEST_BACKEND(LanguageModel);

std::size_t at(Index i) {
    return static_cast<std::size_t>(i);
}

TEST_P(LanguageModel, EmbedAddsTokenAndPositionOfEachSequence) {
    const std::vector<std::int32_t> ids{3, 0, 2, 2, 1};
    const std::vector<Index> starts{0, 0, 2, 2, 5, 5};
    const std::vector<Index> place{0, 1, 0, 1, 2};
    for (const Index d : {5, 12}) {
        const auto token_rows = normal(4 * d, 1);
        const auto position_rows = normal(3 * d, 2);
        Array<std::int32_t> id(backend_, ids);
        Array<float> tokens(backend_, token_rows);
        Array<float> positions(backend_, position_rows);
        Array<float> x(backend_, 5 * d, nan);
        backend_.embed(id.span(), starts, tokens.matrix(4, d), positions.matrix(3, d),
                       x.matrix(5, d));
        const auto got = x.host();
        for (Index t = 0; t < 5; ++t)
            for (Index c = 0; c < d; ++c)
                EXPECT_EQ(got[at(t * d + c)], token_rows[at(ids[at(t)] * d + c)] +
                                                  position_rows[at(place[at(t)] * d + c)]);
    }
}

TEST_P(LanguageModel, LayerNormOfRowsAlsoIntoAStridedMatrix) {
    for (const Index d : {1, 15, 16, 33, 768}) {
        const Index rows = 3;
        const Index stride = d + 7;
        const auto in = normal(rows * d, 3, 2);
        const auto gain = normal(d, 4);
        const auto bias = normal(d, 5);
        Array<float> x(backend_, in);
        Array<float> g(backend_, gain);
        Array<float> b(backend_, bias);
        Array<float> y(backend_, rows * stride, 9.0F);
        backend_.layer_norm(x.matrix(rows, d), g.span(), b.span(), 1e-5F,
                            Matrix<float>(y.span(), rows, d, stride));
        const auto got = y.host();
        for (Index r = 0; r < rows; ++r) {
            double mean = 0;
            double variance = 0;
            for (Index c = 0; c < d; ++c)
                mean += static_cast<double>(in[at(r * d + c)]) / static_cast<double>(d);
            for (Index c = 0; c < d; ++c)
                variance += std::pow(static_cast<double>(in[at(r * d + c)]) - mean, 2) /
                            static_cast<double>(d);
            for (Index c = 0; c < d; ++c) {
                const double scaled = (static_cast<double>(in[at(r * d + c)]) - mean) /
                                      std::sqrt(variance + 1e-5) * static_cast<double>(gain[at(c)]);
                // d = 1: 0 / sqrt(epsilon), and the mean's rounding is scaled up 300 times.
                expect_near(static_cast<double>(got[at(r * stride + c)]),
                            scaled + static_cast<double>(bias[at(c)]),
                            1e-5 * (1 + std::abs(scaled)), "layer norm");
            }
            for (Index c = d; c < stride; ++c) EXPECT_EQ(got[at(r * stride + c)], 9.0F);
        }
    }
}

TEST_P(LanguageModel, LayerNormInPlaceOfMoreRowsThanABlock) {
    const Index rows = 19;
    for (const Index d : {7, 132}) {
        Array<float> x(backend_, normal(rows * d, 3));
        Array<float> g(backend_, normal(d, 4));
        Array<float> b(backend_, normal(d, 5));
        Array<float> y(backend_, rows * d, nan);
        backend_.layer_norm(x.matrix(rows, d), g.span(), b.span(), 1e-5F, y.matrix(rows, d));
        backend_.layer_norm(x.matrix(rows, d), g.span(), b.span(), 1e-5F, x.matrix(rows, d));
        EXPECT_EQ(x.host(), y.host());
    }
}

TEST_P(LanguageModel, BiasAndActivations) {
    const Index rows = 3;
    for (const Index cols : {37, 40}) {
        auto in = normal(rows * cols, 6, 4);
        in[0] = 60;
        in[1] = -60;
        in[2] = 1e30F;
        in[3] = -1e30F;
        in[4] = nan;
        const auto bias = normal(cols, 7);
        const auto exact = [](MlpActivation activation, double x) {
            if (activation == MlpActivation::relu) return x > 0 ? x : 0.0;
            if (activation == MlpActivation::gelu_erf)
                return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
            const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
            return u > -300 ? x / (1 + std::exp(-2 * u)) : 0.0;
        };
        for (const MlpActivation activation :
             {MlpActivation::gelu_tanh, MlpActivation::gelu_erf, MlpActivation::relu}) {
            Array<float> m(backend_, in);
            Array<float> b(backend_, bias);
            backend_.bias_activation(b.span(), activation, m.matrix(rows, cols));
            const auto got = m.host();
            EXPECT_TRUE(std::isnan(got[4]));
            for (Index i = 0; i < rows * cols; ++i) {
                if (i == 4) continue;
                const double x = static_cast<double>(in[at(i)] + bias[at(i % cols)]);
                // 0.5 (1 + erf) cancels for negative x: an absolute error of eps * |x|.
                expect_near(static_cast<double>(got[at(i)]), exact(activation, x),
                            2e-6 * std::abs(exact(activation, x)) + 1e-6, "activation");
            }
        }
        Array<float> m(backend_, in);
        Array<float> b(backend_, bias);
        Array<float> sum(backend_, in);
        backend_.add_bias(b.span(), m.matrix(rows, cols));
        backend_.add(m.matrix(rows, cols), sum.matrix(rows, cols));
        const auto biased = m.host();
        const auto summed = sum.host();
        for (Index i = 5; i < rows * cols; ++i) {
            EXPECT_EQ(biased[at(i)], in[at(i)] + bias[at(i % cols)]);
            EXPECT_EQ(summed[at(i)], in[at(i)] + biased[at(i)]);
        }
    }
}

TEST_P(LanguageModel, CopyMatrixKeepsWhatLiesBetweenTheRows) {
    Array<float> from(backend_, {1, 2, 0, 3, 4, 0});
    Array<float> to(backend_, 8, 9.0F);
    backend_.copy_matrix(Matrix<float>(from.span(), 2, 2, 3), Matrix<float>(to.span(), 2, 2, 4));
    EXPECT_EQ(to.host(), (std::vector<float>{1, 2, 9, 9, 3, 4, 9, 9}));
    const auto values = normal(70 * 12, 1);
    Array<float> source(backend_, values);
    Array<float> wide(backend_, 70 * 16, 9.0F);
    backend_.copy_matrix(source.matrix(70, 12), Matrix<float>(wide.span(), 70, 12, 16));
    backend_.add(source.matrix(70, 12), Matrix<float>(wide.span(), 70, 12, 16));
    const auto got = wide.host();
    for (Index i = 0; i < 70; ++i)
        for (Index j = 0; j < 16; ++j)
            EXPECT_EQ(got[at(i * 16 + j)], j < 12 ? 2 * values[at(i * 12 + j)] : 9.0F);
}

TEST_P(LanguageModel, AttentionIsCausalAndStaysInItsSequence) {
    struct Case {
        Index heads, width;
    };
    const std::vector<Index> starts{0, 1, 1, 32, 65, 130, 260};
    const Index tokens = starts.back();
    for (const auto& [heads, width] : {Case{1, 1}, Case{3, 8}, Case{2, 64}, Case{1, 80}}) {
        const Index d = heads * width;
        const auto in = normal(tokens * 3 * d, 8, 2);
        Array<float> qkv(backend_, in);
        Array<float> out(backend_, tokens * d, nan);
        backend_.attention(qkv.matrix(tokens, 3 * d), starts, heads, out.matrix(tokens, d));
        const auto got = out.host();
        const auto value = [&](Index t, Index c) {
            return static_cast<double>(in[at(t * 3 * d + c)]);
        };
        for (std::size_t s = 0; s + 1 < starts.size(); ++s)
            for (Index t = starts[s]; t < starts[s + 1]; ++t)
                for (Index first = 0; first < d; first += width) {
                    std::vector<double> weight;
                    double largest = -1e300;
                    for (Index k = starts[s]; k <= t; ++k) {
                        double score = 0;
                        for (Index c = first; c < first + width; ++c)
                            score += value(t, c) * value(k, d + c);
                        weight.push_back(score / std::sqrt(static_cast<double>(width)));
                        largest = std::max(largest, weight.back());
                    }
                    double total = 0;
                    for (double& w : weight) total += w = std::exp(w - largest);
                    for (Index c = first; c < first + width; ++c) {
                        double expected = 0;
                        for (Index k = starts[s]; k <= t; ++k)
                            expected += weight[at(k - starts[s])] / total * value(k, 2 * d + c);
                        // Scores up to 30 round by 30 eps, so weights by 4e-6; values are of
                        // size 2.
                        expect_near(static_cast<double>(got[at(t * d + c)]), expected, 3e-5,
                                    "attention");
                    }
                }
    }
}

TEST_P(LanguageModel, PredictGivesLogSumExpLossAndTheFirstLargest) {
    const Index vocabulary = 1001;
    auto in = normal(4 * vocabulary, 9, 5);
    in[at(100)] = in[at(300)] = 50;                                         // row 0: equals
    for (Index v = 0; v < vocabulary; ++v) in[at(vocabulary + v)] = -1e4F;  // row 1: far from 0
    const std::vector<std::int32_t> targets{300, 5, -1, 7};
    Array<float> logits(backend_, in);
    Array<std::int32_t> target(backend_, targets);
    Array<float> sums(backend_, 4, nan);
    Array<float> losses(backend_, 4, nan);
    Array<std::int32_t> places(backend_, 4, -1);
    backend_.predict(logits.matrix(4, vocabulary), target.span(), sums.span(), losses.span(),
                     places.span());
    EXPECT_EQ(places.host()[0], 100);
    EXPECT_EQ(places.host()[1], 0);
    for (Index r = 0; r < 4; ++r) {
        const auto row = in.begin() + r * vocabulary;
        const double largest = static_cast<double>(*std::max_element(row, row + vocabulary));
        double sum = 0;
        for (Index v = 0; v < vocabulary; ++v)
            sum += std::exp(static_cast<double>(row[v]) - largest);
        const double expected = largest + std::log(sum);
        // The result is rounded to float where it stands.
        const double allowed = 1e-6 * (1 + std::abs(expected));
        expect_near(static_cast<double>(sums.host()[at(r)]), expected, allowed, "logsumexp");
        const std::int32_t wanted = targets[at(r)];
        expect_near(static_cast<double>(losses.host()[at(r)]),
                    wanted < 0 ? 0 : expected - static_cast<double>(row[wanted]), allowed, "loss");
    }
}

TEST_P(LanguageModel, PredictShowsANanAndTakesTheFirstOfEquals) {
    const Index vocabulary = 700;
    std::vector<float> in(at(3 * vocabulary), 1);
    in[at(vocabulary + 650)] = nan;
    for (Index v = 0; v < vocabulary; ++v)
        in[at(2 * vocabulary + v)] = v < 500 || v % 2 == 0 ? -infinity : 2.0F;
    Array<float> logits(backend_, in);
    Array<std::int32_t> target(backend_, {699, 3, 501});
    Array<float> sums(backend_, 3, 0.0F);
    Array<float> losses(backend_, 3, 0.0F);
    Array<std::int32_t> places(backend_, 3, -1);
    backend_.predict(logits.matrix(3, vocabulary), target.span(), sums.span(), losses.span(),
                     places.span());
    EXPECT_EQ(places.host()[0], 0);
    EXPECT_EQ(places.host()[2], 501);
    expect_near(static_cast<double>(losses.host()[0]), std::log(700.0), 1e-5, "equal logits");
    expect_near(static_cast<double>(losses.host()[2]), std::log(100.0), 1e-5, "a half missing");
    EXPECT_TRUE(std::isnan(sums.host()[1]));
    EXPECT_TRUE(std::isnan(losses.host()[1]));
}

}  // namespace
}  // namespace clt::test
