// Sparse decode, the residual and evaluation's sums.
#include "backend/backend_test.hpp"

namespace clt::test {
namespace {

class Decode : public BackendTest {};
CLT_ON_THE_TEST_BACKEND(Decode);

struct Case {
    Index layers, features, d, tokens;
    double density;
};

// Widths reach every register block, panel and tail; features 0 is an empty shard. The last ones
// reach what only many features, entries or tokens can: tokens that a block shares, entries of more
// than 256 chunks of the sort, panels of 128 columns, keys of three digits.
const std::vector<Case> cases{
    {1, 1, 1, 1, 1.0},     {1, 3, 33, 31, 0.5},   {3, 7, 31, 33, 0.3},
    {2, 5, 128, 32, 0.2},  {2, 9, 253, 17, 0.2},  {4, 6, 16, 5, 1.0},
    {3, 4, 64, 40, 0.0},   {2, 0, 48, 9, 0.5},    {2, 4, 300, 200, 0.05},
    {3, 11, 5, 64, 0.4},   {2, 3, 32, 0, 0.5},    {1, 300, 260, 3, 0.9},
    {2, 290, 9, 9, 0.9},   {1, 38, 4, 3600, 1.0}, {1, 13000, 132, 3, 0.003},
    {3, 2, 1, 22000, 0.02}};

std::string name_of(const Case& c) {
    return "L " + std::to_string(c.layers) + " F " + std::to_string(c.features) + " d " +
           std::to_string(c.d) + " B " + std::to_string(c.tokens);
}

TEST_P(Decode, EveryFeatureWritesToItsOwnAndLaterLayers) {
    for (const Case& c : cases) {
        auto entries = random_entries(c.layers * c.features, c.tokens, c.density, 11);
        if (entries.size() > 2) entries[1].value = 0;  // in jumprelu's window only
        const ActiveSet set = active_set(backend_, c.layers * c.features, c.tokens, entries);
        std::vector<std::vector<float>> weights;
        std::vector<Array<float>> arrays;
        std::vector<Matrix<const float>> decoder;
        for (Index l = 0; l < c.layers; ++l) {
            const Index width = (c.layers - l) * c.d;
            weights.push_back(normal(c.features * width, static_cast<unsigned>(l)));
            arrays.emplace_back(backend_, weights.back());
            decoder.push_back(arrays.back().matrix(c.features, width));
        }
        const Index cols = c.layers * c.d;
        Array<float> out(backend_, c.tokens * cols, nan);  // must be overwritten
        backend_.decode(set, decoder, out.matrix(c.tokens, cols));

        std::vector<Sum> sums(static_cast<std::size_t>(c.tokens * cols));
        for (const Entry& e : entries) {
            const Index layer = e.row / c.features;
            const Index width = (c.layers - layer) * c.d;
            for (Index j = 0; j < width; ++j)
                sums[static_cast<std::size_t>(e.token * cols + layer * c.d + j)].add(
                    double{e.value} *
                    double{weights[static_cast<std::size_t>(layer)]
                                  [static_cast<std::size_t>(e.row % c.features * width + j)]});
        }
        const auto got = out.host();
        for (std::size_t i = 0; i < sums.size(); ++i) expect_close(got[i], sums[i], name_of(c));
    }
}

TEST_P(Decode, AnEntryOfTheWindowAloneDoesNotReachItsRow) {
    const ActiveSet set = active_set(backend_, 2, 1, {{0, 0, 0.0F}, {1, 0, 2.0F}});
    Array<float> weight(backend_, {nan, nan, 3, 4});
    Array<float> out(backend_, 2, nan);
    backend_.decode(set, std::vector<Matrix<const float>>{weight.matrix(2, 2)}, out.matrix(1, 2));
    EXPECT_EQ(out.host(), (std::vector<float>{6, 8}));
}

TEST_P(Decode, ResidualIsLossAndGradient) {
    for (const auto& [layers, d, tokens] : {std::array<Index, 3>{1, 1, 1},
                                            {2, 33, 31},
                                            {3, 16, 0},
                                            {2, 70, 40},
                                            {2, 1028, 3},
                                            {1, 300, 17}}) {
        const Index cols = layers * d;
        const auto partial = normal(tokens * cols, 1);
        const auto target = normal(tokens * cols, 2);
        const auto bias = normal(cols, 3);
        const auto scale = normal(cols, 4);
        const Index batch = 2 * tokens + 1;
        Array<float> e(backend_, partial);
        Array<float> y(backend_, target);
        Array<float> b(backend_, bias);
        Array<float> s(backend_, scale);
        Array<float> g(backend_, tokens * cols, nan);
        Array<double> sums(backend_, layers, double{nan});
        backend_.residual(e.matrix(tokens, cols), y.matrix(tokens, cols), b.span(), s.span(), batch,
                          layers, g.matrix(tokens, cols), sums.span());
        const auto squared = sums.host();
        const auto errors = e.host();
        const auto gradients = g.host();
        std::vector<Sum> losses(static_cast<std::size_t>(layers));
        for (Index token = 0; token < tokens; ++token)
            for (Index j = 0; j < cols; ++j) {
                const auto i = static_cast<std::size_t>(token * cols + j);
                const auto column = static_cast<std::size_t>(j);
                Sum error;
                error.add(partial[i]);
                error.add(bias[column]);
                error.add(-double{target[i]});
                expect_close(errors[i], error, "error");
                Sum gradient = error;
                const double factor = 2 * double{scale[column]} * double{scale[column]} /
                                      static_cast<double>(batch * d);
                gradient.value *= factor;
                gradient.magnitude *= factor;
                expect_close(gradients[i], gradient, "gradient");
                Sum& loss = losses[static_cast<std::size_t>(j / d)];
                loss.add(std::pow(double{scale[column]} * error.value, 2));
                loss.magnitude += double{scale[column]} * double{scale[column]} * error.magnitude *
                                  error.magnitude;
            }
        for (std::size_t l = 0; l < losses.size(); ++l)
            expect_close(squared[l], losses[l], "squared error");
    }
}

TEST_P(Decode, ANanShowsInTheLossOfItsLayer) {
    Array<float> e(backend_, {1, nan, 2, 3});
    Array<float> y(backend_, 4, 0.0F);
    Array<float> b(backend_, 2, 0.0F);
    Array<float> s(backend_, 2, 1.0F);
    Array<float> g(backend_, 4, 0.0F);
    Array<double> sums(backend_, 2, 0.0);
    backend_.residual(e.matrix(2, 2), y.matrix(2, 2), b.span(), s.span(), 2, 2, g.matrix(2, 2),
                      sums.span());
    const auto squared = sums.host();
    EXPECT_EQ(squared[0], 5);
    EXPECT_TRUE(std::isnan(squared[1]));
}

TEST_P(Decode, SumsOfEvaluationAdd) {
    const Index cols = 270;
    ColumnSums sums;
    for (Buffer<double>* sum :
         {&sums.target, &sums.target_squared, &sums.error, &sums.error_squared})
        write(backend_, std::vector<double>(cols, 1), *sum, Purpose::workspace);
    std::vector<std::array<double, 4>> expected(cols, {1, 1, 1, 1});
    for (const Index tokens : {0, 3, 133}) {
        const auto error = normal(tokens * cols, 1);
        const auto target = normal(tokens * cols, 2);
        Array<float> e(backend_, error);
        Array<float> y(backend_, target);
        backend_.accumulate(e.matrix(tokens, cols), y.matrix(tokens, cols), sums);
        for (Index i = 0; i < tokens * cols; ++i) {
            const double yi = target[static_cast<std::size_t>(i)];
            const double ei = error[static_cast<std::size_t>(i)];
            auto& column = expected[static_cast<std::size_t>(i % cols)];
            column[0] += yi, column[1] += yi * yi, column[2] += ei, column[3] += ei * ei;
        }
    }
    for (std::size_t j = 0; j < expected.size(); ++j) {
        // Doubles of at most 137 terms: 137 eps of a magnitude below 300.
        expect_near(read(backend_, sums.target, cols)[j], expected[j][0], 1e-11, "target");
        expect_near(read(backend_, sums.target_squared, cols)[j], expected[j][1], 1e-11,
                    "target^2");
        expect_near(read(backend_, sums.error, cols)[j], expected[j][2], 1e-11, "error");
        expect_near(read(backend_, sums.error_squared, cols)[j], expected[j][3], 1e-11, "error^2");
    }
}

}  // namespace
}  // namespace clt::test
