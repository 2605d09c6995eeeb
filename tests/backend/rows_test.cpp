// Gradients of decoder and encoder rows, fused with Adam.
#include <omp.h>

#include <algorithm>

#include "backend/backend_test.hpp"

namespace clt::test {
namespace {

struct Case {
    Index layers, layer, features, d, tokens;
    double density;
};

// The last ones: panels of every size and several of them, rows of so many entries that a block
// shares them, and rows on both sides of that number.
const std::vector<Case> cases{
    {1, 0, 1, 1, 1, 1.0},      {2, 1, 3, 33, 31, 0.5},   {3, 1, 7, 31, 33, 0.3},
    {2, 0, 5, 128, 32, 0.2},   {2, 0, 9, 253, 17, 0.2},  {4, 3, 6, 16, 5, 1.0},
    {3, 2, 4, 64, 40, 0.0},    {2, 1, 0, 48, 9, 0.5},    {2, 1, 40, 70, 200, 0.05},
    {3, 1, 4, 32, 0, 0.5},     {1, 0, 3, 112, 64, 0.9},  {1, 0, 3, 768, 20, 0.4},
    {1, 0, 2, 1028, 9, 0.5},   {3, 0, 2, 768, 7, 0.5},   {1, 0, 10, 461, 9, 0.3},
    {1, 0, 2, 512, 300, 0.95}, {1, 0, 12, 36, 640, 0.4}, {2, 0, 2, 33, 300, 1.0}};

std::string name_of(const Case& c) {
    return "L " + std::to_string(c.layers) + " layer " + std::to_string(c.layer) + " F " +
           std::to_string(c.features) + " d " + std::to_string(c.d) + " B " +
           std::to_string(c.tokens);
}

struct Rows {
    Rows(Backend& backend, Index rows_, Index cols_)
        : rows(rows_),
          cols(cols_),
          value(backend, normal(rows * cols, 21)),
          moment1(backend, normal(rows * cols, 22, 0.01F)),
          moment2(backend, [&] {
              auto v = normal(rows * cols, 23, 0.1F);
              for (float& x : v) x *= x;
              return v;
          }()) {}
    ParamRows view() {
        return {value.matrix(rows, cols), moment1.matrix(rows, cols), moment2.matrix(rows, cols)};
    }
    Index rows, cols;
    Array<float> value, moment1, moment2;
};

// What one row's kernel must give, by loops: gradients, dot products, then the update.
struct Expected {
    std::vector<Sum> gradient;  // [features, width]
    std::vector<Sum> dot;       // by entry of the layer
    Sum squares;

    // source[token, column] with rows `stride` long; the layer's columns start at `first`.
    Expected(const Case& c, const std::vector<Entry>& entries, const std::vector<float>& source,
             Index stride, Index first, Index width, const std::vector<float>& weight,
             const std::vector<float>& coefficient)
        : gradient(static_cast<std::size_t>(c.features * width)) {
        for (Index f = 0; f < c.features && !coefficient.empty(); ++f)
            for (Index j = 0; j < width; ++j) {
                const auto i = static_cast<std::size_t>(f * width + j);
                gradient[i].add(double{coefficient[static_cast<std::size_t>(f)]} *
                                double{weight[i]});
            }
        for (const Entry& e : entries) {
            if (c.features == 0 || e.row / c.features != c.layer) continue;
            dot.emplace_back();
            for (Index j = 0; j < width; ++j) {
                const auto i = static_cast<std::size_t>(e.row % c.features * width + j);
                const double x = source[static_cast<std::size_t>(e.token * stride + first + j)];
                gradient[i].add(double{e.value} * x);
                dot.back().add(x * double{weight[i]});
            }
        }
        for (const Sum& g : gradient) {
            squares.add(g.value * g.value);
            squares.magnitude += g.magnitude * g.magnitude;
        }
    }

    // Adam in float on the exact gradient; the kernel's gradient differs by its own tolerance.
    void expect_update(const AdamStep& step, std::vector<float> p, std::vector<float> m,
                       std::vector<float> v, Rows& got, const std::string& what) const {
        const auto got_p = got.value.host();
        const auto got_m = got.moment1.host();
        const auto got_v = got.moment2.host();
        for (std::size_t i = 0; i < gradient.size(); ++i) {
            const double off = tolerance(gradient[i]);
            const double g_size = std::abs(gradient[i].value) + off;
            const double m_off = off + 1e-6 * (std::abs(double{m[i]}) + g_size);
            const double v_off = 2 * g_size * off + 1e-5 * (double{v[i]} + g_size * g_size);
            adam_update(step, static_cast<float>(gradient[i].value), p[i], m[i], v[i]);
            expect_near(got_m[i], m[i], m_off, what + " moment1");
            expect_near(got_v[i], v[i], v_off, what + " moment2");
            const double root = std::sqrt(double{v[i]});
            expect_near(got_p[i], p[i],
                        1e-6 * std::abs(double{p[i]}) +
                            double{step.step_size} *
                                (m_off / (root + 1e-12) +
                                 std::abs(double{m[i]}) * v_off / (root * double{v[i]} + 1e-30)),
                        what + " parameter");
        }
    }
};

class RowKernels : public BackendTest {};
CLT_ON_THE_TEST_BACKEND(RowKernels);

const AdamStep step{0.01F, 0.001F, 0.9F, 0.99F, 1e-8F, 1.0F, 0.5F, 0.1F, 0.01F};

TEST_P(RowKernels, DecoderRowsAgreeWithLoops) {
    for (const Case& c : cases)
        for (const bool penalised : {false, true}) {
            const auto entries = random_entries(c.layers * c.features, c.tokens, c.density, 31);
            const Index cols = c.layers * c.d;
            const Index width = (c.layers - c.layer) * c.d;
            const auto g = normal(c.tokens * cols, 32);
            const auto coefficient = penalised ? normal(c.features, 33) : std::vector<float>{};
            Array<float> dg(backend_, g);
            Array<float> dc(backend_, coefficient);
            Rows rows(backend_, c.features, width);
            const auto p = rows.value.host();
            const auto m = rows.moment1.host();
            const auto v = rows.moment2.host();
            const Expected expected(c, entries, g, cols, c.layer * c.d, width, p, coefficient);

            // First pass: the norm and the activations' gradients; nothing moves.
            ActiveSet set = active_set(backend_, c.layers * c.features, c.tokens, entries);
            const std::vector<float> before(entries.size(), 0.25F);
            write(backend_, before, set.gradient, Purpose::active_set);
            const double squares = sum_of(backend_, [&](auto sum) {
                backend_.decoder_rows(set, c.layer, c.features, dg.matrix(c.tokens, cols),
                                      dc.span(), true, nullptr, rows.view(), sum);
            });
            expect_close(squares, expected.squares, name_of(c) + " squares");
            EXPECT_EQ(rows.value.host(), p);
            EXPECT_EQ(rows.moment1.host(), m);
            const auto dots = read(backend_, set.gradient, set.entries);
            std::size_t in_layer = 0;
            for (std::size_t i = 0; i < entries.size(); ++i) {
                if (entries[i].row / c.features != c.layer) {
                    EXPECT_EQ(dots[i], 0.25F);  // other layers' entries are not touched
                    continue;
                }
                Sum dot = expected.dot[in_layer++];
                dot.add(0.25);
                expect_close(dots[i], dot, name_of(c) + " activation gradient");
            }
            // Second pass: the update alone.
            backend_.decoder_rows(set, c.layer, c.features, dg.matrix(c.tokens, cols), dc.span(),
                                  false, &step, rows.view(), {});
            EXPECT_EQ(read(backend_, set.gradient, set.entries), dots);
            expected.expect_update(step, p, m, v, rows, name_of(c));

            // Both in one pass give the same bits.
            ActiveSet again = active_set(backend_, c.layers * c.features, c.tokens, entries);
            write(backend_, before, again.gradient, Purpose::active_set);
            Rows fused(backend_, c.features, width);
            backend_.decoder_rows(again, c.layer, c.features, dg.matrix(c.tokens, cols), dc.span(),
                                  true, &step, fused.view(), {});
            EXPECT_EQ(read(backend_, again.gradient, again.entries), dots);
            EXPECT_EQ(fused.value.host(), rows.value.host()) << name_of(c);
        }
}

TEST_P(RowKernels, EncoderRowsAgreeWithLoops) {
    for (const Case& c : cases) {
        const auto entries = random_entries(c.layers * c.features, c.tokens, c.density, 41);
        const Index stride = c.layers * c.d;
        const auto x = normal(c.tokens * stride, 42);
        Array<float> dx(backend_, x);
        Rows rows(backend_, c.features, c.d);
        const auto p = rows.value.host();
        const auto m = rows.moment1.host();
        const auto v = rows.moment2.host();
        const Expected expected(c, entries, x, stride, c.layer * c.d, c.d, p, {});
        // dL/dpre is read from `gradient`; `value` must not matter.
        ActiveSet set = active_set(backend_, c.layers * c.features, c.tokens, entries);
        std::swap(set.value, set.gradient);
        const Index offset = c.tokens == 0 ? 0 : c.layer * c.d;
        const Matrix<const float> inputs(dx.span().subspan(offset, dx.span().size() - offset),
                                         c.tokens, c.d, stride);
        expect_close(sum_of(backend_,
                            [&](auto sum) {
                                backend_.encoder_rows(set, c.layer, c.features, inputs, nullptr,
                                                      rows.view(), sum);
                            }),
                     expected.squares, name_of(c) + " squares");
        EXPECT_EQ(rows.value.host(), p);
        backend_.encoder_rows(set, c.layer, c.features, inputs, &step, rows.view(), {});
        expected.expect_update(step, p, m, v, rows, name_of(c));
    }
}

// Wherever it stands in a row, in whole vectors or in the rest; light rows and heavy ones.
TEST_P(RowKernels, ANumberThatIsNotFiniteRaisesTheFlag) {
    for (const Case& c : {Case{1, 0, 3, 33, 31, 0.5}, Case{1, 0, 2, 253, 17, 0.2},
                          Case{1, 0, 2, 1028, 9, 0.5}, Case{1, 0, 2, 36, 300, 0.9}}) {
        const auto entries = random_entries(c.features, c.tokens, c.density, 51);
        ActiveSet set = active_set(backend_, c.features, c.tokens, entries);
        std::swap(set.value, set.gradient);
        Array<float> x(backend_, normal(c.tokens * c.d, 52));
        const Index size = c.features * c.d;
        for (const Index at : {Index{-1}, Index{0}, c.d - 1, size - c.d + c.d / 2, size - 1})
            for (const int array : {0, 2}) {
                Rows rows(backend_, c.features, c.d);
                Array<float>& spoiled = array == 0 ? rows.value : rows.moment2;
                auto values = spoiled.host();
                if (at >= 0) values[static_cast<std::size_t>(at)] = array == 0 ? nan : infinity;
                backend_.upload(std::span<const float>(values), spoiled.span());
                Array<double> flag(backend_, {0.0});
                ParamRows view = rows.view();
                view.not_finite = flag.span();
                const Matrix<const float> source = x.matrix(c.tokens, c.d);
                backend_.encoder_rows(set, 0, c.features, source, &step, view, {});
                EXPECT_EQ(flag.host()[0], at >= 0 ? 1 : 0) << name_of(c) << " at " << at;
                backend_.zero(flag.span());
                backend_.decoder_rows(set, 0, c.features, source, {}, false, &step, view, {});
                EXPECT_EQ(flag.host()[0], at >= 0 ? 1 : 0) << name_of(c) << " at " << at;
            }
    }
}

TEST_P(RowKernels, AHeavyRowIsFoundAmongManyRows) {
    const std::int32_t features = 65800, tokens = 257;
    std::vector<Entry> entries;
    for (std::int32_t token = 0; token < tokens; ++token)
        entries.push_back({features - 1, token, 1.0F});
    ActiveSet set = active_set(backend_, features, tokens, entries);
    const auto g = normal(tokens, 81);
    Array<float> dg(backend_, g);
    Rows rows(backend_, features, 1);
    const double squares = sum_of(backend_, [&](auto sum) {
        backend_.decoder_rows(set, 0, features, dg.matrix(tokens, 1), {}, true, nullptr,
                              rows.view(), sum);
    });
    Sum expected;
    for (const float x : g) expected.add(x);
    expect_near(squares, expected.value * expected.value,
                2 * std::abs(expected.value) * tolerance(expected), "squares");
    const float weight = rows.value.host().back();
    const auto dots = read(backend_, set.gradient, set.entries);
    for (std::size_t i = 0; i < g.size(); ++i) EXPECT_EQ(dots[i], g[i] * weight);
}

TEST_P(RowKernels, TheRoundedCopyIsTheNewWeight) {
    if (backend_.name() == "cpu") return;  // keeps none
    for (const Index d : {8, 5, 780}) {
        const Index features = 9, tokens = 300;
        auto entries = random_entries(features, tokens, 0.02, 71);
        for (std::int32_t token = 0; token < tokens; ++token)
            entries.push_back({features - 1, token, 0.5F});  // shared by a block
        std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
            return std::pair(a.row, a.token) < std::pair(b.row, b.token);
        });
        ActiveSet set = active_set(backend_, features, tokens, entries);
        Array<float> g(backend_, normal(tokens * d, 72));
        Rows rows(backend_, features, d);
        Array<Bfloat16> rounded(backend_, features * d, Bfloat16{0x7FC0});
        ParamRows view = rows.view();
        view.rounded = rounded.matrix(features, d);
        backend_.decoder_rows(set, 0, features, g.matrix(tokens, d), {}, true, &step, view, {});
        const auto value = rows.value.host();
        const auto copy = rounded.host();
        for (std::size_t i = 0; i < value.size(); ++i)
            EXPECT_EQ(copy[i].bits, float_to_bfloat16(value[i])) << "d " << d << " at " << i;
    }
}

TEST_P(RowKernels, AnInactiveRowStillMoves) {
    // Adam with g = 0: the moments decay, the parameter follows its momentum and its weight decay.
    ActiveSet set = active_set(backend_, 1, 2, {});
    Array<float> g(backend_, 2 * 3, 1.0F);
    Rows rows(backend_, 1, 3);
    auto p = rows.value.host();
    auto m = rows.moment1.host();
    auto v = rows.moment2.host();
    backend_.decoder_rows(set, 0, 1, g.matrix(2, 3), {}, true, &step, rows.view(), {});
    for (std::size_t i = 0; i < 3; ++i) {
        adam_update(step, 0, p[i], m[i], v[i]);
        expect_near(rows.value.host()[i], p[i], 1e-6 * std::abs(double{p[i]}), "parameter");
        EXPECT_EQ(rows.moment1.host()[i], m[i]);
    }
}

TEST(CpuBackend, ResultsDoNotDependOnTheNumberOfThreads) {
    const auto backend = make_backend("cpu", Communicator::world());
    const int threads = omp_get_max_threads();
    const Case c{3, 1, 37, 150, 64, 0.2};
    const auto entries = random_entries(c.layers * c.features, c.tokens, c.density, 51);
    const Index cols = c.layers * c.d;
    const Index width = (c.layers - c.layer) * c.d;
    Array<float> g(*backend, normal(c.tokens * cols, 52));
    std::vector<std::vector<float>> results[4];
    std::vector<double> sums;
    for (const int n : {1, 2, 3, 7}) {
        omp_set_num_threads(n);
        ActiveSet set = active_set(*backend, c.layers * c.features, c.tokens, entries);
        Rows rows(*backend, c.features, width);
        sums.push_back(sum_of(*backend, [&](auto sum) {
            backend->decoder_rows(set, c.layer, c.features, g.matrix(c.tokens, cols), {}, true,
                                  nullptr, rows.view(), sum);
        }));
        backend->decoder_rows(set, c.layer, c.features, g.matrix(c.tokens, cols), {}, false, &step,
                              rows.view(), {});
        results[0].push_back(read(*backend, set.gradient, set.entries));
        results[1].push_back(rows.value.host());
        Array<float> w0(*backend, normal(c.features * cols, 53));
        Array<float> w1(*backend, normal(c.features * 2 * c.d, 54));
        Array<float> w2(*backend, normal(c.features * c.d, 55));
        const std::vector<Matrix<const float>> decoder{w0.matrix(c.features, cols),
                                                       w1.matrix(c.features, 2 * c.d),
                                                       w2.matrix(c.features, c.d)};
        Array<float> out(*backend, c.tokens * cols, nan);
        backend->decode(set, decoder, out.matrix(c.tokens, cols));
        results[2].push_back(out.host());
        sums.push_back(sum_of(
            *backend, [&](auto sum) { backend->squared_norm(out.matrix(c.tokens, cols), sum); }));
        Array<float> columns(*backend, cols, nan);
        backend->column_sums(out.matrix(c.tokens, cols), columns.span());
        results[3].push_back(columns.host());
    }
    omp_set_num_threads(threads);
    for (const auto& by_threads : results)
        for (const auto& result : by_threads) EXPECT_EQ(result, by_threads[0]);
    for (std::size_t i = 2; i < sums.size(); ++i) EXPECT_EQ(sums[i], sums[i % 2]);
}

}  // namespace
}  // namespace clt::test
