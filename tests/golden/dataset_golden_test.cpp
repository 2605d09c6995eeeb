// Activation data sets that the reference's generator wrote: our reader gives back its rows. The
// shuffle inside a chunk is undone by finding each stored row in the source.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "clt/data/dataset.hpp"
#include "support/npz.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

const std::string folder = std::string(CLT_SOURCE_DIR) + "/tests/golden/datasets/";

/// A source value as it should be stored; the reference's bfloat16 loses what is negative.
std::string stored(DType dtype, const float* values, Index n) {
    std::vector<float> kept(values, values + n);
    if (dtype == DType::bfloat16)
        for (float& value : kept) value = std::signbit(value) ? 0.0F : value;
    std::string bytes(static_cast<std::size_t>(n * size_of(dtype)), '\0');
    from_float(dtype, kept.data(), bytes.data(), n);
    return bytes;
}

class GoldenDataset : public testing::TestWithParam<const char*> {};

TEST_P(GoldenDataset, HoldsTheSourcesRows) {
    const Communicator world = Communicator::world();
    const ActivationDataset dataset(folder + GetParam() + "/tiny/synthetic_train", world);
    EXPECT_EQ(dataset.layers(), 3);
    EXPECT_EQ(dataset.d_model(), 16);
    EXPECT_EQ(dataset.tokens(), 400);
    EXPECT_EQ(dataset.layer_ids(), (std::vector<Index>{0, 1, 2}));
    const auto source = test::read_npz(folder + "source_" + GetParam() + ".npz");

    // Row r of the source as our reader lays it out, [L, 2, d].
    std::map<std::string, Index> source_row;
    for (Index r = 0; r < dataset.tokens(); ++r) {
        std::string row;
        for (Index layer = 0; layer < dataset.layers(); ++layer)
            for (const char* part : {"inputs_", "targets_"})
                row += stored(
                    dataset.dtype(),
                    source.at(part + std::to_string(layer)).values.data() + r * dataset.d_model(),
                    dataset.d_model());
        source_row[row] = r;
    }
    ASSERT_EQ(source_row.size(), 400U);

    Index first = 0;
    bool shuffled = false;
    for (std::size_t chunk = 0; chunk < dataset.chunks().size(); ++chunk) {
        const Index rows = dataset.chunks()[chunk].rows;
        const Shard mine = shard_of(rows, world.rank(), world.size());
        std::vector<std::byte> bytes;
        dataset.read(chunk, mine, bytes, world);
        std::vector<Index> seen(static_cast<std::size_t>(rows));
        const std::size_t width = bytes.size() / static_cast<std::size_t>(mine.size());
        for (Index i = 0; i < mine.size(); ++i) {
            const std::string row(
                reinterpret_cast<const char*>(bytes.data()) + static_cast<std::size_t>(i) * width,
                width);
            const auto found = source_row.find(row);
            ASSERT_NE(found, source_row.end()) << "chunk " << chunk << " row " << mine.begin + i;
            const Index in_chunk = found->second - first;
            ASSERT_TRUE(in_chunk >= 0 && in_chunk < rows);
            ++seen[static_cast<std::size_t>(in_chunk)];
            shuffled = shuffled || in_chunk != mine.begin + i;
        }
        world.all_reduce_sum(std::span<Index>(seen));
        EXPECT_EQ(seen, std::vector<Index>(static_cast<std::size_t>(rows), 1));
        first += rows;
    }
    EXPECT_EQ(first, 400);
    EXPECT_TRUE(shuffled);
}

TEST_P(GoldenDataset, StatisticsAreThoseOfTheSource) {
    const Communicator world = Communicator::world();
    const ActivationDataset dataset(folder + GetParam() + "/tiny/synthetic_train", world);
    const auto source = test::read_npz(folder + "source_" + GetParam() + ".npz");
    ASSERT_EQ(dataset.stats().size(), 3U);
    for (std::size_t layer = 0; layer < 3; ++layer)
        for (const char* part : {"inputs_", "targets_"}) {
            const auto& values = source.at(part + std::to_string(layer)).values;
            const ColumnStats& stats =
                part[0] == 'i' ? dataset.stats()[layer].inputs : dataset.stats()[layer].targets;
            for (std::size_t c = 0; c < 16; ++c) {
                double mean = 0;
                double squares = 0;
                for (std::size_t r = 0; r < 400; ++r) mean += double{values[r * 16 + c]} / 400;
                for (std::size_t r = 0; r < 400; ++r)
                    squares += (values[r * 16 + c] - mean) * (values[r * 16 + c] - mean);
                // The reference may have used another order of sums, then rounded to float32.
                EXPECT_NEAR(stats.mean[c], mean, 1e-6);
                EXPECT_NEAR(stats.std[c], std::sqrt(squares / 399), 1e-6);
            }
        }
}

TEST_P(GoldenDataset, ClippedBfloat16IsRefused) {
    const Communicator world = Communicator::world();
    const ActivationDataset dataset(folder + GetParam() + "/tiny/synthetic_train", world);
    EXPECT_FALSE(dataset.has_checksums());
    EXPECT_TRUE(dataset.fingerprint().starts_with("sampled-")) << dataset.fingerprint();
    if (dataset.dtype() != DType::bfloat16) {
        dataset.refuse_lost_signs(world);
        return;
    }
    const std::string message =
        test::message_of<UserError>([&] { dataset.refuse_lost_signs(world); });
    EXPECT_NE(message.find("no bfloat16 value is negative"), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenDataset,
                         testing::Values("float32", "float16", "bfloat16", "float32_gzip"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace clt
