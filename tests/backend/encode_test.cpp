// The encoder's tiles: rounded factors, and candidates of tiles larger than a block of any kernel.
#include <algorithm>

#include "backend/backend_test.hpp"
#include "backend/elementwise.hpp"

namespace clt::test {
namespace {

class Encode : public BackendTest {};
CLT_ON_THE_TEST_BACKEND(Encode);

struct Strided {
    Index rows, cols, from_stride, to_stride, offset;
};

TEST_P(Encode, RoundsToNearestEvenWhateverTheRows) {
    for (const auto& [rows, cols, from_stride, to_stride, offset] :
         {Strided{0, 4, 4, 4, 0}, Strided{1, 1, 1, 1, 0}, Strided{3, 5, 5, 5, 0},
          Strided{7, 768, 768, 768, 0}, Strided{3, 1100, 1104, 1100, 4},
          Strided{3, 1100, 1104, 1100, 1}, Strided{2, 4, 5, 8, 0}, Strided{2, 4, 8, 6, 0}}) {
        auto from = normal(offset + rows * from_stride, 3);
        const std::vector<float> special{nan, infinity, -infinity, -0.0F, 1e-40F, 3.4e38F};
        for (std::size_t i = 0; i < from.size(); i += 3) from[i] = special[i / 3 % special.size()];
        for (std::size_t i = 1; i < from.size(); i += 3)  // halfway between two bfloat16
            from[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(from[i]) | 0x8000U) * 2;
        const Bfloat16 untouched{0x1234};
        Array<float> d_from(backend_, from);
        Array<Bfloat16> d_to(backend_, rows * to_stride, untouched);
        backend_.round(Matrix<const float>(d_from.span().subspan(offset, rows * from_stride), rows,
                                           cols, from_stride),
                       Matrix<Bfloat16>(d_to.span(), rows, cols, to_stride));
        const auto to = d_to.host();
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < to_stride; ++j) {
                const auto source = static_cast<std::size_t>(offset + i * from_stride + j);
                const std::uint16_t expected =
                    j < cols ? float_to_bfloat16(from[source]) : untouched.bits;
                ASSERT_EQ(to[static_cast<std::size_t>(i * to_stride + j)].bits, expected)
                    << rows << " x " << cols << " at " << i << ", " << j;
            }
    }
}

TEST_P(Encode, TilesShrinkWithTokens) {
    Index last = backend_.encode_tile(0, 64);
    for (const Index tokens : {1, 100, 4096, 1 << 20}) {
        const Index tile = backend_.encode_tile(tokens, 64);
        EXPECT_GE(tile, 16);
        EXPECT_LE(tile, last);
        EXPECT_EQ(tile % 16, 0);
        last = tile;
    }
}

TEST(EncodeBfloat16, MultipliesTheRoundedFactors) {
    if (test_backend_name() == "cpu") return;  // it has no such product
    const auto backend = make_backend(test_backend_name(), Communicator::world(), "bfloat16");
    ASSERT_TRUE(backend->rounds_encoder());
    const Index tile = 33;
    const Index tokens = 31;
    const Index d = 16;
    const auto x = normal(tokens * d, 1);
    const auto w = normal(tile * d, 2);
    const auto bias = normal(tile, 3);
    Array<float> dx(*backend, x);
    Array<float> dw(*backend, w);
    Array<float> db(*backend, bias);
    Array<Bfloat16> rounded_x(*backend, tokens * d, Bfloat16{});
    Array<Bfloat16> rounded_w(*backend, tile * d, Bfloat16{});
    Array<float> pre(*backend, tile * tokens, nan);
    backend->round(dx.matrix(tokens, d), rounded_x.matrix(tokens, d));
    backend->round(dw.matrix(tile, d), rounded_w.matrix(tile, d));
    backend->encode({dx.matrix(tokens, d), rounded_x.matrix(tokens, d)},
                    {dw.matrix(tile, d), rounded_w.matrix(tile, d)}, db.span(),
                    pre.matrix(tile, tokens));
    const auto rounded = [](float value) {
        return static_cast<double>(bfloat16_to_float(float_to_bfloat16(value)));
    };
    const auto got = pre.host();
    for (Index t = 0; t < tile; ++t)
        for (Index b = 0; b < tokens; ++b) {
            Sum sum;
            for (Index j = 0; j < d; ++j)
                sum.add(rounded(w[static_cast<std::size_t>(t * d + j)]) *
                        rounded(x[static_cast<std::size_t>(b * d + j)]));
            sum.add(double{bias[static_cast<std::size_t>(t)]});
            expect_close(got[static_cast<std::size_t>(t * tokens + b)], sum, "encode");
        }
}

// Rows without entries, one with all tokens, and a few entries each, of a tile whose rows lie
// `stride` apart.
TEST_P(Encode, CollectsFromTilesLargerThanABlock) {
    struct Size {
        Index tile, tokens, stride;
    };
    for (const auto& [tile, tokens, stride] :
         {Size{600, 5, 5}, Size{270, 33, 40}, Size{3, 4133, 4133}, Size{1, 9001, 9001}}) {
        auto pre = normal(tile * stride, 5);
        for (Index t = 0; t < tile; ++t)
            for (Index b = 0; b < tokens; ++b) {
                float& p = pre[static_cast<std::size_t>(t * stride + b)];
                if (t == tile / 2) p = std::abs(p) + 1;
                if (t % 7 == 3) p = -1;
            }
        Array<float> d_pre(backend_, pre);
        const Matrix<const float> matrix(d_pre.span(), tile, tokens, stride);
        for (const float least : {1.0F, 2.5F}) {  // several entries a word, and few
            std::vector<Entry> expected;
            for (Index t = 0; t < tile; ++t)
                for (Index b = 0; b < tokens; ++b) {
                    const float p = pre[static_cast<std::size_t>(t * stride + b)];
                    if (p >= least)
                        expected.push_back(
                            {static_cast<std::int32_t>(100 + t), static_cast<std::int32_t>(b), p});
                }
            const auto found = static_cast<Index>(expected.size());
            Array<float> bound(backend_, {least});
            for (const Index room : {tile * tokens, tokens / 2, Index{40}}) {
                Candidates out;
                backend_.reset(out, room, /*ranked=*/true);
                backend_.collect({}, matrix, 100, {}, 0, bound.span(), {}, out);
                EXPECT_EQ(backend_.found(out), found);
                EXPECT_EQ(
                    entries_of(backend_, out),
                    std::vector<Entry>(expected.begin(), expected.begin() + std::min(found, room)))
                    << tile << " x " << tokens << ", room for " << room;
            }
        }
        Array<double> sums(backend_, 2 * tile, -1.0);
        backend_.tile_sums(matrix, sums.span());
        const double negative =
            sum_of(backend_, [&](auto sum) { backend_.negative_sum(matrix, sum); });
        const auto got = sums.host();
        Sum negatives;
        for (Index t = 0; t < tile; ++t) {
            Sum sum;
            Sum squared;
            for (Index b = 0; b < tokens; ++b) {
                const double p = pre[static_cast<std::size_t>(t * stride + b)];
                sum.add(p);
                squared.add(p * p);
                negatives.add(std::max(0.0, -p));
            }
            expect_close(got[static_cast<std::size_t>(2 * t)], sum, "sum");
            expect_close(got[static_cast<std::size_t>(2 * t + 1)], squared, "squares");
        }
        expect_close(negative, negatives, "negative_sum");
    }
}

}  // namespace
}  // namespace clt::test
