// Dense products, the encoder's tiles, and loops over whole matrices.
#include "backend/backend_test.hpp"
#include "backend/elementwise.hpp"

namespace clt::test {
namespace {

class Dense : public BackendTest {};
CLT_ON_THE_TEST_BACKEND(Dense);

float at(const std::vector<float>& m, Index cols, Index i, Index j) {
    return m[static_cast<std::size_t>(i * cols + j)];
}

TEST_P(Dense, GemmInAllOrientations) {
    for (const auto& [m, n, k] : {std::array<Index, 3>{1, 1, 1},
                                  {31, 33, 32},
                                  {65, 17, 129},
                                  {5, 7, 0},
                                  {0, 3, 4},
                                  {3, 0, 4}}) {
        for (const bool ta : {false, true})
            for (const bool tb : {false, true})
                for (const float beta : {0.0F, 1.0F, -0.5F}) {
                    const auto a = normal(m * k, 1);
                    const auto b = normal(k * n, 2);
                    const auto c = normal(m * n, 3);
                    Array<float> da(backend_, a);
                    Array<float> db(backend_, b);
                    Array<float> dc(backend_, c);
                    backend_.gemm(ta, tb, 1.5F, ta ? da.matrix(k, m) : da.matrix(m, k),
                                  tb ? db.matrix(n, k) : db.matrix(k, n), beta, dc.matrix(m, n));
                    const auto got = dc.host();
                    for (Index i = 0; i < m; ++i)
                        for (Index j = 0; j < n; ++j) {
                            Sum sum;
                            for (Index l = 0; l < k; ++l)
                                sum.add(1.5 * double{ta ? at(a, m, l, i) : at(a, k, i, l)} *
                                        double{tb ? at(b, k, j, l) : at(b, n, l, j)});
                            sum.add(double{beta} * double{at(c, n, i, j)});
                            expect_close(got[static_cast<std::size_t>(i * n + j)], sum, "gemm");
                        }
                }
    }
}

TEST_P(Dense, GemmOverwritesWhateverWasThereWhenBetaIsZero) {
    Array<float> a(backend_, {2});
    Array<float> c(backend_, {nan});
    backend_.gemm(false, false, 1, a.matrix(1, 1), a.matrix(1, 1), 0, c.matrix(1, 1));
    EXPECT_EQ(c.host()[0], 4);
}

TEST_P(Dense, EncodeReadsALayerOfStridedInputs) {
    for (const auto& [tile, tokens, d] :
         {std::array<Index, 3>{1, 1, 1}, {33, 31, 17}, {0, 4, 3}, {3, 0, 4}, {64, 100, 48}}) {
        const Index layers = 3;
        const auto x = normal(tokens * layers * d, 1);
        const auto w = normal(tile * d, 2);
        const auto bias = normal(tile, 3);
        Array<float> dx(backend_, x);
        Array<float> dw(backend_, w);
        Array<float> db(backend_, bias);
        Array<float> pre(backend_, tile * tokens, nan);
        const Index offset = tokens == 0 ? 0 : d;  // layer 1
        backend_.encode(Matrix<const float>(dx.span().subspan(offset, dx.span().size() - offset),
                                            tokens, d, layers * d),
                        dw.matrix(tile, d), db.span(), pre.matrix(tile, tokens));
        const auto got = pre.host();
        for (Index t = 0; t < tile; ++t)
            for (Index b = 0; b < tokens; ++b) {
                Sum sum;
                for (Index j = 0; j < d; ++j)
                    sum.add(double{at(w, d, t, j)} * double{at(x, layers * d, b, d + j)});
                sum.add(double{bias[static_cast<std::size_t>(t)]});
                expect_close(got[static_cast<std::size_t>(t * tokens + b)], sum, "encode");
            }
    }
}

TEST_P(Dense, SumsOfRowsAndColumns) {
    for (const auto& [rows, cols] : {std::pair<Index, Index>{1, 1},
                                     {31, 33},
                                     {33, 130},
                                     {0, 5},
                                     {5, 0},
                                     {1, 9001},
                                     {70, 516},
                                     {2100, 8}}) {
        const auto m = normal(rows * cols, 1);
        Array<float> dm(backend_, m);
        Array<double> sums(backend_, 2 * rows, -1.0);
        Array<float> columns(backend_, cols, nan);
        Array<float> norms(backend_, rows, nan);
        backend_.tile_sums(dm.matrix(rows, cols), sums.span());
        backend_.column_sums(dm.matrix(rows, cols), columns.span());
        backend_.row_norms(dm.matrix(rows, cols), norms.span());
        Sum negative;
        Sum squared;
        for (Index i = 0; i < rows; ++i) {
            Sum sum;
            Sum row_squared;
            for (Index j = 0; j < cols; ++j) {
                const double value = at(m, cols, i, j);
                sum.add(value);
                row_squared.add(value * value);
                squared.add(value * value);
                negative.add(std::max(0.0, -value));
            }
            expect_close(sums.host()[static_cast<std::size_t>(2 * i)], sum, "sum");
            expect_close(sums.host()[static_cast<std::size_t>(2 * i + 1)], row_squared, "squares");
            Sum norm;
            norm.add(std::sqrt(row_squared.value));
            expect_close(norms.host()[static_cast<std::size_t>(i)], norm, "norm");
        }
        for (Index j = 0; j < cols; ++j) {
            Sum sum;
            for (Index i = 0; i < rows; ++i) sum.add(at(m, cols, i, j));
            expect_close(columns.host()[static_cast<std::size_t>(j)], sum, "column");
        }
        expect_close(
            sum_of(backend_, [&](auto sum) { backend_.negative_sum(dm.matrix(rows, cols), sum); }),
            negative, "negative_sum");
        expect_close(
            sum_of(backend_, [&](auto sum) { backend_.squared_norm(dm.matrix(rows, cols), sum); }),
            squared, "squared_norm");
    }
}

TEST_P(Dense, NegativeSumIsReferenceCaseC7AndShowsANan) {
    Array<float> pre(backend_, {-1, -1.5, 3, 0.5, 0, 0.5, -2, 1.5});
    Array<double> sum(backend_, {1.5});
    backend_.negative_sum(pre.matrix(4, 2), sum.span());
    EXPECT_EQ(sum.host()[0], 6);  // added to what was there
    Array<float> with_nan(backend_, {-1, nan});
    backend_.negative_sum(with_nan.matrix(1, 2), sum.span());
    EXPECT_TRUE(std::isnan(sum.host()[0]));
}

// A gap that is read shows as NaN.
std::vector<float> with_gaps(const std::vector<float>& m, Index rows, Index cols, Index stride) {
    std::vector<float> wide(static_cast<std::size_t>(rows * stride), nan);
    for (Index i = 0; i < rows; ++i)
        std::copy_n(m.begin() + i * cols, cols, wide.begin() + i * stride);
    return wide;
}

TEST_P(Dense, GapsBetweenRowsAreNeitherReadNorWritten) {
    const Index rows = 37;
    for (const auto& [cols, stride] : {std::pair<Index, Index>{33, 36}, {36, 40}, {300, 304}}) {
        const auto m = normal(rows * cols, 1);
        const auto v = normal(rows * cols, 2);
        Array<float> gapped(backend_, with_gaps(m, rows, cols, stride));
        Array<float> exact(backend_, m);
        const Matrix<float> a(gapped.span(), rows, cols, stride);
        const Matrix<float> b = exact.matrix(rows, cols);
        Array<float> columns_a(backend_, cols, nan);
        Array<float> columns_b(backend_, cols, nan);
        backend_.column_sums(a, columns_a.span());
        backend_.column_sums(b, columns_b.span());
        EXPECT_EQ(columns_a.host(), columns_b.host());
        Array<float> norms_a(backend_, rows, nan);
        Array<float> norms_b(backend_, rows, nan);
        backend_.row_norms(a, norms_a.span());
        backend_.row_norms(b, norms_b.span());
        EXPECT_EQ(norms_a.host(), norms_b.host());
        const double squared = sum_of(backend_, [&](auto s) { backend_.squared_norm(b, s); });
        // In double, in another order.
        expect_near(sum_of(backend_, [&](auto s) { backend_.squared_norm(a, s); }), squared,
                    1e-12 * squared, "squared_norm");

        Array<float> value(backend_, with_gaps(v, rows, cols, stride));
        Array<float> exact_value(backend_, v);
        Array<float> moment(backend_, with_gaps(m, rows, cols, stride));
        Array<float> exact_moment(backend_, m);
        Array<float> squares(backend_,
                             with_gaps(std::vector<float>(m.size(), 2), rows, cols, stride));
        Array<float> exact_squares(backend_, std::vector<float>(m.size(), 2));
        const auto gaps = [&](Array<float>& array) {
            return Matrix<float>(array.span(), rows, cols, stride);
        };
        Array<float> coefficient(backend_, normal(rows, 3));
        backend_.add_scaled_rows(coefficient.span(), a, gaps(value));
        backend_.add_scaled_rows(coefficient.span(), b, exact_value.matrix(rows, cols));
        backend_.adam(AdamStep{0.1F}, a, {gaps(value), gaps(moment), gaps(squares)});
        backend_.adam(AdamStep{0.1F}, b,
                      {exact_value.matrix(rows, cols), exact_moment.matrix(rows, cols),
                       exact_squares.matrix(rows, cols)});
        const auto expect_same = [&](const Array<float>& got, const Array<float>& expected) {
            const auto wide = got.host();
            const auto values = expected.host();
            for (Index i = 0; i < rows; ++i)
                for (Index j = 0; j < stride; ++j) {
                    if (j < cols)
                        EXPECT_EQ(at(wide, stride, i, j), at(values, cols, i, j));
                    else
                        EXPECT_TRUE(std::isnan(at(wide, stride, i, j)));
                }
        };
        expect_same(value, exact_value);
        expect_same(moment, exact_moment);
        expect_same(squares, exact_squares);
    }
}

TEST_P(Dense, SquaredNormAddsAndShowsANan) {
    auto m = normal(5000, 1);
    Array<double> sum(backend_, {2.0});
    Array<float> zeros(backend_, 5000, 0.0F);
    backend_.squared_norm(zeros.matrix(1, 5000), sum.span());
    EXPECT_EQ(sum.host()[0], 2);
    m[4999] = nan;
    Array<float> dm(backend_, m);
    backend_.squared_norm(dm.matrix(1, 5000), sum.span());
    EXPECT_TRUE(std::isnan(sum.host()[0]));
}

TEST_P(Dense, AddScaledRows) {
    const auto value = normal(5 * 33, 1);
    Array<float> coefficient(backend_, {0, 1, -2, 0.5, 3});
    Array<float> dv(backend_, value);
    Array<float> g(backend_, 5 * 33, 1.0F);
    backend_.add_scaled_rows(coefficient.span(), dv.matrix(5, 33), g.matrix(5, 33));
    for (Index i = 0; i < 5 * 33; ++i) {
        Sum sum;
        sum.add(1);
        sum.add(double{coefficient.host()[static_cast<std::size_t>(i / 33)]} *
                double{value[static_cast<std::size_t>(i)]});
        expect_close(g.host()[static_cast<std::size_t>(i)], sum, "add_scaled_rows");
    }
}

TEST_P(Dense, AdamFollowsTheSameFormulaInDouble) {
    const AdamStep step{0.01F, 0.001F, 0.9F, 0.99F, 1e-8F, 3.2F, 0.5F, 0.1F, 0.01F};
    const auto g = normal(3 * 37, 1);
    auto p = normal(3 * 37, 2);
    auto m = normal(3 * 37, 3, 0.1F);
    auto v = normal(3 * 37, 4, 0.1F);
    for (float& value : v) value *= value;
    p[0] = m[0] = v[0] = 0;
    Array<float> dg(backend_, g);
    Array<float> dp(backend_, p);
    Array<float> dm(backend_, m);
    Array<float> dv(backend_, v);
    backend_.adam(step, dg.matrix(3, 37), {dp.matrix(3, 37), dm.matrix(3, 37), dv.matrix(3, 37)});
    for (std::size_t i = 0; i < g.size(); ++i) {
        const double gi = 0.5 * double{g[i]};
        Sum mi;
        mi.add(double{step.beta1} * double{m[i]});
        mi.add(double{step.rest1} * gi);
        const double vi = double{step.beta2} * double{v[i]} + double{step.rest2} * gi * gi;
        Sum pi;
        pi.add(double{p[i]});
        pi.add(-double{step.decay} * double{p[i]});
        const double root = std::sqrt(vi) * double{step.inverse_root_correction2};
        // m may cancel: its rounding is of its terms' size.
        pi.add(-double{step.step_size} * mi.value / (root + double{step.epsilon}));
        pi.magnitude += double{step.step_size} * mi.magnitude / (root + double{step.epsilon});
        // A dozen roundings of 6e-8 each.
        expect_close(dm.host()[i], mi, "moment1");
        expect_near(dv.host()[i], vi, 1e-6 * vi, "moment2");
        expect_near(dp.host()[i], pi.value, 1e-6 * pi.magnitude, "parameter");
    }
}

TEST_P(Dense, AdamRaisesAFlagWhenItWritesANumberThatIsNotFinite) {
    AdamStep step{0.01F};
    for (const auto& [rows, cols] : {std::pair<Index, Index>{3, 37}, {5, 64}, {1, 1}}) {
        const auto at = static_cast<std::size_t>(rows * cols - 1);
        // By p, m, v or g; 1e30: v overflows while p does not. 99: beyond largest_value.
        struct Spoil {
            int array;
            float value;
            float largest = std::numeric_limits<float>::max();
        };
        for (const Spoil& spoil :
             {Spoil{-1, 0}, Spoil{0, nan}, Spoil{0, -infinity}, Spoil{1, nan}, Spoil{1, infinity},
              Spoil{2, infinity}, Spoil{3, nan}, Spoil{3, 1e30F}, Spoil{0, 99, 87},
              Spoil{0, -99, 87}, Spoil{0, 80, 87}}) {
            std::vector<float> data[] = {normal(rows * cols, 1), normal(rows * cols, 2),
                                         std::vector<float>(at + 1, 0.5F), normal(rows * cols, 4)};
            if (spoil.array >= 0) data[spoil.array][at] = spoil.value;
            Array<float> p(backend_, data[0]);
            Array<float> m(backend_, data[1]);
            Array<float> v(backend_, data[2]);
            Array<float> g(backend_, data[3]);
            Array<double> flag(backend_, {0.0});
            step.largest_value = spoil.largest;
            backend_.adam(step, g.matrix(rows, cols),
                          {p.matrix(rows, cols),
                           m.matrix(rows, cols),
                           v.matrix(rows, cols),
                           {},
                           flag.span()});
            EXPECT_EQ(flag.host()[0], spoil.array >= 0 && spoil.value != 80 ? 1 : 0)
                << rows << "x" << cols << ", array " << spoil.array << ", " << spoil.value;
        }
    }
}

// 1 - beta2 formed in float would be 0, and the second moment with it.
TEST_P(Dense, AdamKnowsHowFarABetaIsFromOne) {
    const AdamStep step{0.01F, 0, 0.9F, 1.0F, 1e-8F, 1, 1, 0.1F, 1e-9F};
    Array<float> g(backend_, {2.0F});
    Array<float> p(backend_, {0.0F});
    Array<float> m(backend_, {0.0F});
    Array<float> v(backend_, {0.0F});
    backend_.adam(step, g.matrix(1, 1), {p.matrix(1, 1), m.matrix(1, 1), v.matrix(1, 1)});
    expect_near(v.host()[0], 4e-9, 1e-15, "moment2");
}

TEST_P(Dense, AdamKeepsTheRoundedCopyInStep) {
    if (backend_.name() == "cpu") return;  // it keeps none
    for (const auto& [rows, cols] : {std::pair<Index, Index>{3, 37}, {5, 64}}) {
        Array<float> g(backend_, normal(rows * cols, 1));
        Array<float> p(backend_, normal(rows * cols, 2));
        Array<float> m(backend_, rows * cols, 0.0F);
        Array<float> v(backend_, rows * cols, 0.0F);
        Array<Bfloat16> rounded(backend_, rows * cols, Bfloat16{});
        backend_.adam(AdamStep{0.1F}, g.matrix(rows, cols),
                      {p.matrix(rows, cols), m.matrix(rows, cols), v.matrix(rows, cols),
                       rounded.matrix(rows, cols)});
        const auto value = p.host();
        const auto low = rounded.host();
        for (std::size_t i = 0; i < value.size(); ++i)
            EXPECT_EQ(low[i].bits, float_to_bfloat16(value[i]));
    }
}

TEST_P(Dense, BytesMoveAndAgeResets) {
    Array<Index> fired(backend_, {0, 3, 0});
    Array<Index> silence(backend_, {4, 7, 0});
    backend_.age(fired.span(), silence.span());
    EXPECT_EQ(silence.host(), (std::vector<Index>{5, 0, 1}));
    backend_.copy(Span<const Index>(fired.span()), silence.span());
    EXPECT_EQ(silence.host(), (std::vector<Index>{0, 3, 0}));
    backend_.zero(silence.span());
    EXPECT_EQ(silence.host(), (std::vector<Index>{0, 0, 0}));
    backend_.zero(Span<Index>());
}

TEST_P(Dense, RoundKeepsSevenBitsToNearestEven) {
    // 1 + 1/256 lies in the middle of two bfloat16 and goes to the even one, as does 1 + 3/256.
    const std::vector<float> exact{1,      1.00390625F, 1.01171875F, -1.01171875F,
                                   1e-40F, 3e38F,       infinity,    -0.0F};
    Array<float> from(backend_, exact);
    Buffer<Bfloat16> to(backend_.memory(), 8, Purpose::workspace);
    backend_.round(from.matrix(2, 4), {to.span(), 2, 4});
    const auto bits = read(backend_, to, 8);
    for (std::size_t i = 0; i < exact.size(); ++i)
        EXPECT_EQ(bits[i].bits, float_to_bfloat16(exact[i])) << exact[i];
    EXPECT_EQ(bfloat16_to_float(bits[1].bits), 1);
    EXPECT_EQ(bfloat16_to_float(bits[2].bits), 1.015625F);
}

TEST_P(Dense, SumPartsAddsEqualRanges) {
    for (const Index each : {0, 1, 33, 1000}) {
        std::vector<Index> counts;
        std::vector<Index> expected(3, 0);
        for (Index i = 0; i < 3 * each; ++i) {
            counts.push_back(i * i - 40);
            expected[static_cast<std::size_t>(i / each)] += counts.back();
        }
        Array<Index> from(backend_, counts);
        Array<Index> totals(backend_, 3, Index{-1});
        backend_.sum_parts(from.span(), totals.span());
        EXPECT_EQ(totals.host(), expected);
    }
}

}  // namespace
}  // namespace clt::test
