// On the emulator alone: the bits that kernels leave must not depend on the order in which blocks
// and threads run.
#include <algorithm>

#include "backend/backend_test.hpp"
#include "support/cuda_on_cpu/emulator.hpp"

namespace clt::test {
namespace {

/// The bytes of arrays, one after the other.
class Bits {
  public:
    template <class T>
    void add(const std::vector<T>& values) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
        bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(T));
    }
    bool operator==(const Bits&) const = default;

  private:
    std::vector<unsigned char> bytes_;
};

class Order : public testing::Test {
  protected:
    void TearDown() override { emu::set_order(0); }

    /// make(): Bits of everything that a family's kernels leave.
    template <class Make>
    void expect_same_bits(Make make) {
        emu::set_order(0);
        const Bits expected = make();
        for (const std::uint64_t seed : {1, 2, 3}) {
            emu::set_order(seed);
            EXPECT_TRUE(make() == expected) << "order " << seed;
        }
    }

    std::unique_ptr<Backend> owner_ = make_test_backend(Communicator::world());
    Backend& backend_ = *owner_;
};

TEST_F(Order, EncodeSelectIndexAndCount) {
    const Index tile = 40;
    const Index tokens = 300;
    Array<float> pre(backend_, normal(tile * tokens, 1));
    expect_same_bits([&] {
        Bits bits;
        const auto matrix = pre.matrix(tile, tokens);
        Array<double> sums(backend_, 2 * tile, 0.0);
        backend_.tile_sums(matrix, sums.span());
        bits.add(sums.host());
        bits.add(std::vector<double>{
            sum_of(backend_, [&](auto sum) { backend_.negative_sum(matrix, sum); })});

        const CollectRule rule{Activation::batchtopk, /*zscore=*/true, /*keep_negative=*/true};
        Array<float> bound(backend_, {-1});
        Candidates candidates;
        backend_.reset(candidates, 2 * tile * tokens, /*ranked=*/true);
        for (const Index first_row : {Index{0}, tile})
            backend_.collect(rule, matrix, first_row, sums.span(), tokens, bound.span(), {},
                             candidates);
        const Index found = backend_.found(candidates);
        bits.add(read(backend_, candidates.row, found));
        bits.add(read(backend_, candidates.token, found));
        bits.add(read(backend_, candidates.pre, found));
        bits.add(read(backend_, candidates.key, found));

        const PositionMap map{tile, tile, 0, 2, 0};
        for (const Index groups : {Index{1}, tokens}) {
            Cut cut;
            cut.groups = groups;
            const auto n = static_cast<std::size_t>(groups);
            write(backend_, std::vector<std::uint64_t>(n, 0), cut.score, Purpose::workspace);
            write(backend_, std::vector<std::uint64_t>(n, 0), cut.position, Purpose::workspace);
            write(backend_, std::vector<Index>(n, groups == 1 ? 5001 : 11), cut.remaining,
                  Purpose::workspace);
            for (const bool positions : {false, true})
                for (const int shift : {24, 16, 8, 0}) {
                    Array<Index> counts(backend_, groups << 8, Index{0});
                    if (positions)
                        backend_.count_position_digits(candidates, map, cut, shift, 8,
                                                       counts.span());
                    else
                        backend_.count_digits(candidates, cut, shift, 8, counts.span());
                    backend_.choose_digit(counts.span(), shift, 8, positions, cut);
                    bits.add(counts.host());
                }
            backend_.keep(map, cut, candidates);
            bits.add(read(backend_, candidates.key, backend_.found(candidates)));
        }

        ActiveSet set;
        backend_.index({}, {}, 2 * tile, tokens, candidates, set);
        bits.add(read(backend_, set.row_start, 2 * tile + 1));
        bits.add(read(backend_, set.token, set.entries));
        Array<Index> active(backend_, 2 * tile, Index{0});
        Array<Index> fired(backend_, 2 * tile, Index{0});
        backend_.count(set, active.span(), fired.span());
        bits.add(active.host());
        bits.add(fired.host());
        return bits;
    });
}

TEST_F(Order, Matrices) {
    for (const auto& [rows, cols] : {std::pair<Index, Index>{70, 516}, {9, 4101}}) {
        const auto m = normal(rows * cols, 1);
        expect_same_bits([&] {
            Bits bits;
            Array<float> g(backend_, m);
            const auto matrix = g.matrix(rows, cols);
            Array<float> columns(backend_, cols, nan);
            Array<float> norms(backend_, rows, nan);
            backend_.column_sums(matrix, columns.span());
            backend_.row_norms(matrix, norms.span());
            bits.add(columns.host());
            bits.add(norms.host());
            bits.add(std::vector<double>{
                sum_of(backend_, [&](auto sum) { backend_.squared_norm(matrix, sum); })});
            Array<float> p(backend_, normal(rows * cols, 2));
            Array<float> first(backend_, rows * cols, 0.0F);
            Array<float> second(backend_, rows * cols, 0.0F);
            backend_.add_scaled_rows(norms.span(), matrix, p.matrix(rows, cols));
            backend_.adam(
                AdamStep{0.1F}, matrix,
                {p.matrix(rows, cols), first.matrix(rows, cols), second.matrix(rows, cols)});
            bits.add(p.host());
            return bits;
        });
    }
}

TEST_F(Order, Activations) {
    const Index rows = 30;
    const Index tokens = 1100;
    const CollectRule rule{Activation::jumprelu, false, false, 0.3F};
    const auto entries = random_entries(rows, tokens, 0.2, 3);
    expect_same_bits([&] {
        Bits bits;
        Array<float> norms(backend_, normal(rows, 4));
        Array<float> log_theta(backend_, rows, -0.5F);
        Array<float> coefficient(backend_, rows, nan);
        Array<float> bias(backend_, rows, nan);
        Array<float> threshold(backend_, rows, nan);
        ActiveSet set = active_set(backend_, rows, tokens, entries);
        bits.add(std::vector<double>{sum_of(backend_, [&](auto sum) {
            backend_.sparsity_penalty(0.5F, 1.5F, norms.span(), set, coefficient.span(), sum);
        })});
        bits.add(coefficient.host());
        backend_.activation_gradient(rule, log_theta.span(), 0.6F, set, bias.span(),
                                     threshold.span());
        bits.add(bias.host());
        bits.add(threshold.host());
        Array<float> gradient(backend_, rows * tokens, nan);
        const auto g = gradient.matrix(rows, tokens);
        backend_.scatter_gradient(set, 0, g);
        bits.add(gradient.host());

        Array<float> pre(backend_, normal(rows * tokens, 5));
        Array<float> value(backend_, rows * tokens, nan);
        Array<Index> counts(backend_, 2 * rows, Index{0});
        const auto p = pre.matrix(rows, tokens);
        const auto a = value.matrix(rows, tokens);
        backend_.activate(rule, log_theta.span(), p, a, counts.span().subspan(0, rows),
                          counts.span().subspan(rows, rows));
        bits.add(value.host());
        bits.add(counts.host());
        bits.add(std::vector<Index>{sum_of<Index>(
            backend_, [&](auto count) { backend_.count_kept(rule, log_theta.span(), p, count); })});
        bits.add(std::vector<double>{sum_of(backend_, [&](auto sum) {
            backend_.sparsity_penalty_dense(0.5F, 1.5F, norms.span(), a, g, coefficient.span(),
                                            sum);
        })});
        bits.add(coefficient.host());
        backend_.activation_gradient_dense(rule, log_theta.span(), 0.6F, p, g, bias.span(),
                                           threshold.span());
        backend_.preactivation_gradient(0.5F, p, g, bias.span());
        bits.add(bias.host());
        bits.add(threshold.host());
        bits.add(gradient.host());
        return bits;
    });
}

TEST_F(Order, LanguageModel) {
    const std::vector<Index> starts{0, 3, 73};
    const Index tokens = starts.back();
    const Index heads = 2;
    for (const Index width : {6, 68}) {
        const Index d = heads * width;
        expect_same_bits([&] {
            Bits bits;
            Array<float> qkv(backend_, normal(tokens * 3 * d, 1));
            Array<float> bias(backend_, normal(3 * d, 2));
            Array<float> gain(backend_, normal(3 * d, 3));
            Array<float> out(backend_, tokens * d, nan);
            const auto m = qkv.matrix(tokens, 3 * d);
            backend_.layer_norm(m, gain.span(), bias.span(), 1e-5F, m);
            backend_.bias_activation(bias.span(), MlpActivation::gelu_tanh, m);
            backend_.attention(m, starts, heads, out.matrix(tokens, d));
            bits.add(qkv.host());
            bits.add(out.host());
            Array<std::int32_t> targets(backend_, tokens, 1);
            Array<float> sums(backend_, tokens, nan);
            Array<float> losses(backend_, tokens, nan);
            Array<std::int32_t> places(backend_, tokens, -1);
            backend_.predict(m, targets.span(), sums.span(), losses.span(), places.span());
            bits.add(sums.host());
            bits.add(losses.host());
            bits.add(places.host());
            return bits;
        });
    }
}

// Tokens that a warp serves and tokens that a block shares.
TEST_F(Order, DecodeAndResidual) {
    const Index layers = 2, features = 300, d = 70, tokens = 20, cols = layers * d;
    const auto entries = random_entries(layers * features, tokens, 0.9, 1);
    const ActiveSet set = active_set(backend_, layers * features, tokens, entries);
    Array<float> both(backend_, normal(features * cols, 2));
    Array<float> own(backend_, normal(features * d, 3));
    Array<float> target(backend_, normal(tokens * cols, 4));
    Array<float> ones(backend_, cols, 1.0F);
    expect_same_bits([&] {
        Bits bits;
        Array<float> out(backend_, tokens * cols, nan);
        Array<float> gradient(backend_, tokens * cols, nan);
        Array<double> squares(backend_, layers, double{nan});
        backend_.decode(
            set,
            std::vector<Matrix<const float>>{both.matrix(features, cols), own.matrix(features, d)},
            out.matrix(tokens, cols));
        bits.add(out.host());
        backend_.residual(out.matrix(tokens, cols), target.matrix(tokens, cols), ones.span(),
                          ones.span(), tokens, layers, gradient.matrix(tokens, cols),
                          squares.span());
        bits.add(squares.host());
        return bits;
    });
}

// Rows that a warp visits and rows that a block shares.
TEST_F(Order, Rows) {
    const Index layers = 2, features = 12, d = 36, tokens = 640, cols = layers * d;
    const auto entries = random_entries(layers * features, tokens, 0.4, 1);
    Array<float> g(backend_, normal(tokens * cols, 2));
    Array<float> coefficient(backend_, normal(features, 3));
    const AdamStep step{0.01F, 0.001F, 0.9F, 0.99F, 1e-8F, 1.0F, 0.5F, 0.1F, 0.01F};
    expect_same_bits([&] {
        Bits bits;
        ActiveSet set = active_set(backend_, layers * features, tokens, entries);
        Array<float> value(backend_, normal(features * cols, 4));
        Array<float> moment1(backend_, features * cols, 0.5F);
        Array<float> moment2(backend_, features * cols, 0.25F);
        const ParamRows rows{value.matrix(features, cols), moment1.matrix(features, cols),
                             moment2.matrix(features, cols)};
        bits.add(std::vector<double>{sum_of(backend_, [&](auto sum) {
            backend_.decoder_rows(set, 0, features, g.matrix(tokens, cols), coefficient.span(),
                                  true, nullptr, rows, sum);
        })});
        bits.add(read(backend_, set.gradient, set.entries));
        backend_.decoder_rows(set, 0, features, g.matrix(tokens, cols), coefficient.span(), false,
                              &step, rows, {});
        for (const Array<float>* array : {&value, &moment1, &moment2}) bits.add(array->host());
        return bits;
    });
}

}  // namespace
}  // namespace clt::test
