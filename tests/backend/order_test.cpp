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

}  // namespace
}  // namespace clt::test
