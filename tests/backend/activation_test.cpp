// Activations, their gradients and the tanh penalty, sparse and dense.
#include "backend/backend_test.hpp"
#include "backend/elementwise.hpp"

namespace clt::test {
namespace {

class Activations : public BackendTest {};
CLT_ON_THE_TEST_BACKEND(Activations);

const CollectRule relu{Activation::relu, false, false, 0};

CollectRule jumprelu_rule(float bandwidth) {
    return {Activation::jumprelu, false, false, bandwidth / 2};
}

// All entries of pre[rows, tokens] that collect() keeps, indexed.
ActiveSet kept_set(Backend& backend, const CollectRule& rule, const std::vector<float>& pre,
                   Index rows, Index tokens, Span<const float> log_theta) {
    Array<float> p(backend, pre);
    Candidates candidates;
    backend.reset(candidates, rows * tokens, /*ranked=*/false);
    backend.collect(rule, p.matrix(rows, tokens), 0, {}, tokens, {}, log_theta, candidates);
    ActiveSet set;
    backend.index(rule, log_theta, rows, tokens, candidates, set);
    return set;
}

// The sparse set's gradients are the entries of a dense [rows, tokens] matrix.
void set_gradient(Backend& backend, const std::vector<float>& dense, ActiveSet& set) {
    const auto start = read(backend, set.row_start, set.rows + 1);
    const auto token = read(backend, set.token, set.entries);
    std::vector<float> gradient;
    for (Index row = 0; row < set.rows; ++row)
        for (Index i = start[static_cast<std::size_t>(row)];
             i < start[static_cast<std::size_t>(row) + 1]; ++i)
            gradient.push_back(dense[static_cast<std::size_t>(row * set.tokens +
                                                              token[static_cast<std::size_t>(i)])]);
    backend.upload(std::span<const float>(gradient), set.gradient.span().subspan(0, set.entries));
}

std::vector<float> scattered(Backend& backend, const ActiveSet& set) {
    Array<float> dense(backend, set.rows * set.tokens, nan);
    backend.scatter_gradient(set, 0, dense.matrix(set.rows, set.tokens));
    return dense.host();
}

TEST_P(Activations, JumpReluIsReferenceCaseC5) {
    // C5 is token-major; here a row is a feature.
    const std::vector<float> x{0.4F, -0.2F, 0, 0.5F, 1.0F, 2, 0.6F, 1.01F, 0.75F};
    const std::vector<float> forward{0, 0, 0, 0.5F, 1.0F, 2, 0.6F, 1.01F, 0.75F};
    const std::vector<float> upstream{1, 1, 10, 2, 1, 1, 3, 1, -1};
    const std::vector<float> dx{0, 0, 0, 2, 1, 1, 3, 1, -1};
    const std::vector<double> dlog{-0.2, -1.0, -0.525};
    const CollectRule rule = jumprelu_rule(1);
    Array<float> log_theta(backend_, 3, std::log(0.5F));

    Array<float> pre(backend_, x);
    Array<float> value(backend_, 9, nan);
    Array<Index> active(backend_, 3, Index{0});
    Array<Index> fired(backend_, 3, Index{0});
    backend_.activate(rule, log_theta.span(), pre.matrix(3, 3), value.matrix(3, 3), active.span(),
                      fired.span());
    EXPECT_EQ(value.host(), forward);
    EXPECT_EQ(active.host(), (std::vector<Index>{0, 3, 3}));
    EXPECT_EQ(fired.host(), (std::vector<Index>{0, 3, 3}));

    Array<float> gradient(backend_, upstream);
    Array<float> bias(backend_, 3, nan);
    Array<float> threshold(backend_, 3, nan);
    backend_.activation_gradient_dense(rule, log_theta.span(), 1, pre.matrix(3, 3),
                                       gradient.matrix(3, 3), bias.span(), threshold.span());
    EXPECT_EQ(gradient.host(), dx);
    EXPECT_EQ(bias.host(), (std::vector<float>{0, 4, 3}));

    ActiveSet set = kept_set(backend_, rule, x, 3, 3, log_theta.span());
    set_gradient(backend_, upstream, set);
    Array<float> sparse_bias(backend_, 3, nan);
    Array<float> sparse_threshold(backend_, 3, nan);
    backend_.activation_gradient(rule, log_theta.span(), 1, set, sparse_bias.span(),
                                 sparse_threshold.span());
    EXPECT_EQ(scattered(backend_, set), dx);
    EXPECT_EQ(sparse_bias.host(), bias.host());
    for (std::size_t f = 0; f < 3; ++f) {
        // Reference-cases' tolerance.
        expect_near(threshold.host()[f], dlog[f], 1e-5, "dense");
        expect_near(sparse_threshold.host()[f], dlog[f], 1e-5, "sparse");
    }
}

TEST_P(Activations, WindowEdgesAreInclusive) {
    // C5's scalar table: theta 1 (log 0), g = 1; h = 2 puts 0 and 2 on the edge.
    const std::vector<float> x{0, 2, 0.8F, 1.0F, 1.2F};
    Array<float> log_theta(backend_, 5, 0.0F);
    for (const auto& [h, expected] :
         {std::pair<float, std::vector<float>>{1.0F, {0, 0, -0.8F, -1.0F, -1.2F}},
          {2.0F, {0, -1, -0.4F, -0.5F, -0.6F}}}) {
        ActiveSet set = kept_set(backend_, jumprelu_rule(h), x, 5, 1, log_theta.span());
        EXPECT_EQ(set.entries, h == 1 ? 4 : 5);  // 2 is over theta, 0 only on the wider edge
        set_gradient(backend_, std::vector<float>(5, 1), set);
        Array<float> bias(backend_, 5, nan);
        Array<float> threshold(backend_, 5, nan);
        backend_.activation_gradient(jumprelu_rule(h), log_theta.span(), h, set, bias.span(),
                                     threshold.span());
        EXPECT_EQ(threshold.host(), expected);
    }
}

TEST_P(Activations, SparseAndDenseAgreeOnAnyShape) {
    std::vector<std::pair<Index, Index>> shapes{{3, 1300}};
    for (const Index rows : {0, 1, 5, 33})
        for (const Index tokens : {0, 1, 31, 32, 33}) shapes.emplace_back(rows, tokens);
    for (const auto& rule : {relu, jumprelu_rule(0.6F)})
        for (const auto& [rows, tokens] : shapes) {
            auto x = normal(rows * tokens, 61);
            const std::vector<float> special{nan, infinity, -infinity, -0.0F};
            for (std::size_t i = 0; i < x.size(); i += 7) x[i] = special[(i / 7) % 4];
            const auto upstream = normal(rows * tokens, 62);
            Array<float> log_theta(backend_, rows, std::log(0.3F));
            Array<float> pre(backend_, x);
            Array<float> value(backend_, rows * tokens, nan);
            Array<float> gradient(backend_, upstream);
            Array<Index> active(backend_, rows, Index{0});
            Array<Index> fired(backend_, rows, Index{0});
            Array<float> bias(backend_, rows, nan);
            Array<float> threshold(backend_, rows, 0.0F);
            backend_.activate(rule, log_theta.span(), pre.matrix(rows, tokens),
                              value.matrix(rows, tokens), active.span(), fired.span());

            ActiveSet set = kept_set(backend_, rule, x, rows, tokens, log_theta.span());
            EXPECT_EQ(sum_of<Index>(backend_,
                                    [&](auto count) {
                                        backend_.count_kept(rule, log_theta.span(),
                                                            pre.matrix(rows, tokens), count);
                                    }),
                      set.entries);
            Array<Index> sparse_active(backend_, rows, Index{0});
            Array<Index> sparse_fired(backend_, rows, Index{0});
            backend_.count(set, sparse_active.span(), sparse_fired.span());
            EXPECT_EQ(sparse_active.host(), active.host());
            EXPECT_EQ(sparse_fired.host(), fired.host());

            // An infinite p in a gradient is of no use: finite ones from here.
            for (float& p : x) p = std::isfinite(p) ? p : -1.0F;
            backend_.upload(std::span<const float>(x), pre.span());
            set = kept_set(backend_, rule, x, rows, tokens, log_theta.span());
            backend_.activation_gradient_dense(
                rule, log_theta.span(), 0.6F, pre.matrix(rows, tokens),
                gradient.matrix(rows, tokens), bias.span(), threshold.span());
            set_gradient(backend_, upstream, set);
            Array<float> sparse_bias(backend_, rows, nan);
            Array<float> sparse_threshold(backend_, rows, 0.0F);
            backend_.activation_gradient(rule, log_theta.span(), 0.6F, set, sparse_bias.span(),
                                         sparse_threshold.span());
            EXPECT_EQ(scattered(backend_, set), gradient.host());
            const float theta = 0.3F;
            const auto dense_biases = bias.host();
            const auto sparse_biases = sparse_bias.host();
            const auto dense_thresholds = threshold.host();
            const auto sparse_thresholds = sparse_threshold.host();
            for (Index row = 0; row < rows; ++row) {
                Sum bias_sum;
                Sum threshold_sum;
                for (Index b = 0; b < tokens; ++b) {
                    const auto i = static_cast<std::size_t>(row * tokens + b);
                    const float edge = rule.activation == Activation::relu ? 0 : theta;
                    if (x[i] > edge) bias_sum.add(upstream[i]);
                    if (rule.activation == Activation::jumprelu && std::abs(x[i] - theta) <= 0.3F)
                        threshold_sum.add(double{theta} * double{upstream[i]} * -double{x[i]} /
                                          double{0.6F});
                }
                const auto r = static_cast<std::size_t>(row);
                expect_close(dense_biases[r], bias_sum, "bias");
                expect_close(sparse_biases[r], bias_sum, "sparse bias");
                expect_close(dense_thresholds[r], threshold_sum, "threshold");
                expect_close(sparse_thresholds[r], threshold_sum, "sparse threshold");
            }
        }
}

TEST_P(Activations, CountKeptOfManyRows) {
    const Index rows = 1100;
    std::vector<float> x(static_cast<std::size_t>(rows), -1);
    for (const std::size_t row : {0, 1023, 1024, 1099}) x[row] = 1;
    Array<float> pre(backend_, x);
    EXPECT_EQ(sum_of<Index>(
                  backend_,
                  [&](auto count) { backend_.count_kept(relu, {}, pre.matrix(rows, 1), count); }),
              4);
}

TEST_P(Activations, PenaltyIsReferenceCaseC6) {
    // Rows: layer 0 features 0, 1, layer 1 features 0, 1; lambda 2e-3, c 1.5.
    const std::vector<float> norms{5, 3, 1, 0.5F};
    const std::vector<float> a{0.1F, 0.2F, 0, 0.5F, 0, 1, 2, -1};
    ActiveSet set =
        active_set(backend_, 4, 2,
                   {{0, 0, 0.1F}, {0, 1, 0.2F}, {1, 1, 0.5F}, {2, 1, 1}, {3, 0, 2}, {3, 1, -1}});
    Array<float> norm(backend_, norms);
    Array<float> coefficient(backend_, 4, nan);
    expect_near(sum_of(backend_,
                       [&](auto sum) {
                           backend_.sparsity_penalty(2e-3F, 1.5F, norm.span(), set,
                                                     coefficient.span(), sum);
                       }),
                0.0073869424, 1e-5 * 0.0073869424, "sparse penalty");
    Array<float> value(backend_, a);
    Array<float> gradient(backend_, 8, 0.0F);
    Array<float> dense_coefficient(backend_, 4, nan);
    expect_near(sum_of(backend_,
                       [&](auto sum) {
                           backend_.sparsity_penalty_dense(
                               2e-3F, 1.5F, norm.span(), value.matrix(4, 2), gradient.matrix(4, 2),
                               dense_coefficient.span(), sum);
                       }),
                0.0073869424, 1e-5 * 0.0073869424, "dense penalty");
    const auto sparse = scattered(backend_, set);
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double n = norms[i / 2];
        const double slope = 2e-3 * (1 - std::pow(std::tanh(1.5 * n * double{a[i]}), 2));
        // 1 - tanh^2 cancels: eps of the 1.
        expect_near(gradient.host()[i], slope * 1.5 * n, 2e-3 * 1.5 * n * 5e-7, "gradient");
        if (a[i] != 0) {
            EXPECT_EQ(sparse[i], gradient.host()[i]);
        }
    }
    for (std::size_t row = 0; row < 4; ++row) {
        double expected = 0;
        for (const std::size_t i : {2 * row, 2 * row + 1})
            expected += 2e-3 * 1.5 * double{a[i]} / double{norms[row]} *
                        (1 - std::pow(std::tanh(1.5 * double{norms[row]} * double{a[i]}), 2));
        expect_near(coefficient.host()[row], expected, 2e-3 * 1e-6, "coefficient");
        expect_near(dense_coefficient.host()[row], expected, 2e-3 * 1e-6, "dense coefficient");
    }
}

TEST_P(Activations, PenaltyOfManyRowsAndOfAFullOne) {
    const Index rows = 9000;
    const Index tokens = 300;
    auto entries = random_entries(rows, 2, 0.3, 63);
    std::erase_if(entries, [](const Entry& entry) { return entry.row == 8500; });
    const auto full = std::find_if(entries.begin(), entries.end(),
                                   [](const Entry& entry) { return entry.row > 8500; });
    std::vector<Entry> row;
    for (std::int32_t token = 0; token < tokens; ++token)
        row.push_back({8500, token, 0.01F * static_cast<float>(token - 100)});
    entries.insert(full, row.begin(), row.end());
    ActiveSet set = active_set(backend_, rows, tokens, entries);
    const auto norms = normal(rows, 64);
    Array<float> norm(backend_, norms);
    Array<float> coefficient(backend_, rows, nan);
    Array<double> sum(backend_, {1.0});
    backend_.sparsity_penalty(0.5F, 1.5F, norm.span(), set, coefficient.span(), sum.span());
    const auto gradient = read(backend_, set.gradient, set.entries);
    Sum total;
    std::vector<Sum> slopes(static_cast<std::size_t>(rows));
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const auto r = static_cast<std::size_t>(entries[i].row);
        const double scaled = 1.5 * double{norms[r]};
        const double t = std::tanh(scaled * double{entries[i].value});
        // 1 - tanh^2 cancels: eps of the 1.
        expect_near(gradient[i], 0.5 * scaled * (1 - t * t), std::abs(scaled) * 1e-6, "gradient");
        slopes[r].add(0.75 / double{norms[r]} * (1 - t * t) * double{entries[i].value});
        slopes[r].magnitude += std::abs(0.75 / double{norms[r]} * double{entries[i].value});
        total.add(0.5 * t);
    }
    total.add(1);
    expect_close(sum.host()[0], total, "penalty");
    const auto factor = coefficient.host();
    for (std::size_t r = 0; r < slopes.size(); ++r)
        expect_close(factor[r], slopes[r], "coefficient");
}

TEST_P(Activations, ARowOfNormZeroHasNoPenaltyAndNoNan) {
    ActiveSet set = active_set(backend_, 1, 2, {{0, 0, 3}, {0, 1, -2}});
    Array<float> norm(backend_, {0});
    Array<float> coefficient(backend_, {nan});
    EXPECT_EQ(sum_of(backend_,
                     [&](auto sum) {
                         backend_.sparsity_penalty(1, 1, norm.span(), set, coefficient.span(), sum);
                     }),
              0);
    EXPECT_EQ(coefficient.host()[0], 0);
    EXPECT_EQ(scattered(backend_, set), (std::vector<float>{0, 0}));
    Array<float> value(backend_, {3, -2});
    Array<float> gradient(backend_, {1, 1});
    Array<float> dense(backend_, {nan});
    EXPECT_EQ(sum_of(backend_,
                     [&](auto sum) {
                         backend_.sparsity_penalty_dense(1, 1, norm.span(), value.matrix(1, 2),
                                                         gradient.matrix(1, 2), dense.span(), sum);
                     }),
              0);
    EXPECT_EQ(dense.host()[0], 0);
    EXPECT_EQ(gradient.host(), (std::vector<float>{1, 1}));
}

TEST_P(Activations, PreactivationGradientPullsUpWhatIsNegative) {
    Array<float> pre(backend_, {-1, 0, 2, -0.0F, -3, -4});
    Array<float> gradient(backend_, 6, 1.0F);
    Array<float> bias(backend_, {10, 20});
    backend_.preactivation_gradient(0.5F, pre.matrix(2, 3), gradient.matrix(2, 3), bias.span());
    EXPECT_EQ(gradient.host(), (std::vector<float>{0.5F, 1, 1, 1, 0.5F, 0.5F}));
    EXPECT_EQ(bias.host(), (std::vector<float>{9.5F, 19}));
    backend_.preactivation_gradient(0.5F, pre.matrix(2, 3), gradient.matrix(2, 3), {});
    EXPECT_EQ(gradient.host(), (std::vector<float>{0, 1, 1, 1, 0, 0}));
}

TEST_P(Activations, ScatterTakesARangeOfRows) {
    ActiveSet set = active_set(backend_, 4, 3, {{0, 1, 1}, {1, 0, 2}, {2, 2, 3}, {3, 1, 4}});
    backend_.copy(Span<const float>(set.value.span()), set.gradient.span());
    Array<float> dense(backend_, 6, nan);
    backend_.scatter_gradient(set, 1, dense.matrix(2, 3));
    EXPECT_EQ(dense.host(), (std::vector<float>{2, 0, 0, 0, 0, 3}));
}

}  // namespace
}  // namespace clt::test
