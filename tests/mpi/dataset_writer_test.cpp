// The writer through our own reader: layout, shuffle, statistics, resume, refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clt/data/dataset.hpp"
#include "clt/data/writer.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "data/column_statistics.hpp"
#include "data/row_exchange.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

constexpr Index layers = 3;
constexpr Index d_model = 5;
constexpr Index width = 2 * layers * d_model;

/// Token t of a made-up data set, [L, 2, d]; both signs, no two tokens alike.
std::vector<float> made_up_rows(Shard tokens) {
    std::vector<float> rows;
    for (Index t = tokens.begin; t < tokens.end; ++t)
        for (Index c = 0; c < width; ++c)
            rows.push_back(static_cast<float>(std::sin(0.37 * double(t * width + c))) * 3 -
                           0.01F * static_cast<float>(c));
    return rows;
}

DatasetWriterConfig config(const std::string& folder, DType dtype = DType::float32) {
    return {.folder = folder,
            .model_name = "tiny",
            .dataset = "text.txt",
            .split = "train",
            .layers = layers,
            .d_model = d_model,
            .dtype = dtype,
            .chunk_tokens = 30,
            .seed = 7,
            .gzip = 0,
            .provenance = R"({"context_size": 16})"};
}

enum class Split { even, last_rank_has_all, first_rank_has_none };

Shard part_of(Shard tokens, Split split, const Communicator& world) {
    Shard part = shard_of(tokens.size(), world.rank(), world.size());
    if (split == Split::last_rank_has_all)
        part = world.rank() == world.size() - 1 ? Shard{0, tokens.size()} : Shard{};
    if (split == Split::first_rank_has_none && world.size() > 1)
        part = world.rank() == 0 ? Shard{}
                                 : shard_of(tokens.size(), world.rank() - 1, world.size() - 1);
    return {tokens.begin + part.begin, tokens.begin + part.end};
}

const std::vector<Shard> three_chunks{{0, 40}, {40, 71}, {71, 74}};

void write_chunks(DatasetWriter& writer, std::size_t from, std::size_t to, Split split,
                  const Communicator& world) {
    for (std::size_t i = from; i < to; ++i)
        writer.write_chunk(made_up_rows(part_of(three_chunks[i], split, world)),
                           "state " + std::to_string(i));
}

/// All rows of a chunk on every rank, native bytes.
std::vector<std::byte> whole_chunk(const ActivationDataset& dataset, std::size_t chunk,
                                   const Communicator& world) {
    std::vector<std::byte> bytes;
    dataset.read(chunk, {0, dataset.chunks()[chunk].rows}, bytes, world);
    return bytes;
}

class StorageType : public testing::TestWithParam<std::tuple<DType, int>> {};

TEST_P(StorageType, RowsComeBackShuffledBySeedAlone) {
    const auto [dtype, gzip] = GetParam();
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    std::vector<std::byte> first_split;
    for (const Split split : {Split::even, Split::last_rank_has_all, Split::first_rank_has_none}) {
        const std::string folder = scratch / std::to_string(static_cast<int>(split));
        DatasetWriterConfig settings = config(folder, dtype);
        settings.gzip = gzip;
        DatasetWriter writer(settings, world);
        write_chunks(writer, 0, 3, split, world);
        writer.finish();

        const ActivationDataset dataset(folder, world);
        ASSERT_EQ(dataset.chunks().size(), 3U);
        EXPECT_EQ(dataset.dtype(), dtype);
        EXPECT_EQ(dataset.tokens(), 74);
        for (std::size_t chunk = 0; chunk < 3; ++chunk) {
            const Shard tokens = three_chunks[chunk];
            const auto order = chunk_permutation(7, static_cast<Index>(chunk), tokens.size());
            const std::vector<float> source = made_up_rows(tokens);
            std::vector<std::byte> expected(
                static_cast<std::size_t>(tokens.size() * width * size_of(dtype)));
            for (std::size_t i = 0; i < order.size(); ++i)
                from_float(dtype, source.data() + order[i] * width,
                           expected.data() + i * static_cast<std::size_t>(width * size_of(dtype)),
                           width);
            EXPECT_EQ(whole_chunk(dataset, chunk, world), expected);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(All, StorageType,
                         testing::Combine(testing::Values(DType::float32, DType::float16,
                                                          DType::bfloat16),
                                          testing::Values(0, 4)));

TEST(ChunkPermutation, IsAPermutationOfItsOwn) {
    const auto first = chunk_permutation(7, 0, 1000);
    std::vector<std::uint32_t> sorted = first;
    std::sort(sorted.begin(), sorted.end());
    for (std::uint32_t i = 0; i < 1000; ++i) ASSERT_EQ(sorted[i], i);
    EXPECT_NE(first, sorted);
    EXPECT_NE(first, chunk_permutation(7, 1, 1000));
    EXPECT_NE(first, chunk_permutation(8, 0, 1000));
    EXPECT_TRUE(chunk_permutation(7, 0, 0).empty());
}

TEST(DatasetWriter, LayoutIsTheReferences) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    DatasetWriter writer(config(scratch / "set", DType::bfloat16), world);
    std::vector<float> minus_one(world.rank() == 0 ? static_cast<std::size_t>(width) : 0, -1.0F);
    writer.write_chunk(minus_one, "");
    writer.write_chunk({}, "");  // nobody has a row: no chunk
    writer.finish();
    const H5File file = H5File::open(scratch / "set/chunk_0.hdf5", &world);
    EXPECT_EQ(file.children(), (std::vector<std::string>{"layer_0", "layer_1", "layer_2"}));
    EXPECT_EQ(file.children("layer_1"), (std::vector<std::string>{"inputs", "targets"}));
    const H5Dataset targets = file.dataset("layer_2/targets");
    EXPECT_EQ(targets.type(), H5Type::uint16);
    std::vector<std::uint16_t> bits(static_cast<std::size_t>(d_model));
    targets.read({0, 1}, bits.data());
    EXPECT_EQ(bits, std::vector<std::uint16_t>(static_cast<std::size_t>(d_model), 0xBF80));
    EXPECT_EQ(read_file(scratch / "set/index.bin"),
              std::string("\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0", 16));
    // The version of the superblock follows HDF5's signature.
    EXPECT_EQ(read_file(scratch / "set/chunk_0.hdf5")[8], 3);
    const auto metadata = nlohmann::json::parse(read_file(scratch / "set/metadata.json"));
    EXPECT_EQ(metadata["model_name"], "tiny");
    EXPECT_EQ(metadata["total_tokens"], 1);
    EXPECT_EQ(metadata["dtype"], "bfloat16");
    EXPECT_EQ(metadata["context_size"], 16);
    EXPECT_FALSE(std::filesystem::exists(scratch / "set/progress.bin"));
    EXPECT_FALSE(std::filesystem::exists(scratch / "set/chunk_1.hdf5"));
}

TEST(ColumnStatistics, AreTheReferencesForAnySplit) {  // reference-cases C10
    const Communicator world = Communicator::world();
    const std::vector<float> rows{1, 10, 3, 10, 5, 10, 7, 14};
    for (const std::vector<Index>& blocks :
         {std::vector<Index>{2, 2}, {1, 3}, {4, 0}, {1, 1, 1, 1}}) {
        ColumnStatistics statistics(2);
        Index at = 0;
        for (const Index block : blocks) {
            const Shard mine = shard_of(block, world.rank(), world.size());
            statistics.add(std::span(rows).subspan(static_cast<std::size_t>(2 * (at + mine.begin)),
                                                   static_cast<std::size_t>(2 * mine.size())),
                           world);
            at += block;
        }
        EXPECT_DOUBLE_EQ(statistics.mean()[0], 4);
        EXPECT_DOUBLE_EQ(statistics.mean()[1], 11);
        EXPECT_NEAR(statistics.standard_deviation()[0], 2.5819889, 1e-7);
        EXPECT_DOUBLE_EQ(statistics.standard_deviation()[1], 2);
    }
    ColumnStatistics one(2);
    one.add(std::span(rows).first(world.rank() == 0 ? 2 : 0), world);
    EXPECT_EQ(one.standard_deviation(), (std::vector<double>{0, 0}));
}

TEST(DatasetWriter, StatisticsAreOfTheRowsBeforeRounding) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    DatasetWriter writer(config(scratch / "set", DType::bfloat16), world);
    write_chunks(writer, 0, 3, Split::even, world);
    writer.finish();
    const ActivationDataset dataset(scratch / "set", world);
    const std::vector<float> rows = made_up_rows({0, 74});
    for (Index column = 0; column < width; ++column) {
        double mean = 0;
        double squares = 0;
        for (Index t = 0; t < 74; ++t)
            mean += double{rows[static_cast<std::size_t>(t * width + column)]} / 74;
        for (Index t = 0; t < 74; ++t)
            squares += std::pow(rows[static_cast<std::size_t>(t * width + column)] - mean, 2);
        const LayerStats& layer = dataset.stats()[static_cast<std::size_t>(column / (2 * d_model))];
        const ColumnStats& stats = column / d_model % 2 == 0 ? layer.inputs : layer.targets;
        EXPECT_NEAR(stats.mean[static_cast<std::size_t>(column % d_model)], mean, 1e-6);
        EXPECT_NEAR(stats.std[static_cast<std::size_t>(column % d_model)], std::sqrt(squares / 73),
                    1e-6);
    }
}

TEST(DatasetWriter, AKilledJobGoesOnBehindTheLastWholeChunk) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    {
        DatasetWriter writer(config(scratch / "whole"), world);
        write_chunks(writer, 0, 3, Split::even, world);
        writer.finish();
    }
    {
        DatasetWriter writer(config(scratch / "cut"), world);
        EXPECT_EQ(writer.chunks(), 0);
        EXPECT_EQ(writer.caller_state(), "");
        write_chunks(writer, 0, 2, Split::even, world);
    }
    if (world.rank() == 0) write_file(scratch / "cut/chunk_2.hdf5.tmp", "half a chunk");
    world.barrier();
    EXPECT_THROW(ActivationDataset(scratch / "cut", world), UserError);  // not finished
    DatasetWriter writer(config(scratch / "cut"), world);
    EXPECT_EQ(writer.chunks(), 2);
    EXPECT_EQ(writer.tokens(), 71);
    EXPECT_EQ(writer.caller_state(), "state 1");
    EXPECT_FALSE(writer.complete());
    write_chunks(writer, 2, 3, Split::even, world);
    writer.finish();
    for (const char* name : {"/index.bin", "/norm_stats.json"})
        EXPECT_EQ(read_file(scratch / "cut" + name), read_file(scratch / "whole" + name));
    const ActivationDataset whole(scratch / "whole", world);
    const ActivationDataset cut(scratch / "cut", world);
    for (std::size_t chunk = 0; chunk < 3; ++chunk)
        EXPECT_EQ(whole_chunk(whole, chunk, world), whole_chunk(cut, chunk, world));

    const DatasetWriter again(config(scratch / "cut"), world);
    EXPECT_TRUE(again.complete());
    EXPECT_EQ(again.tokens(), 74);
}

TEST(DatasetWriter, RefusesAFolderMadeWithOtherSettings) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    DatasetWriterConfig other = config(scratch / "set");
    other.seed = 8;
    const std::string expected =
        scratch / "set" +
        ": already holds activations made with seed = 7, this job says 8; choose another folder or "
        "remove it";
    {
        DatasetWriter writer(config(scratch / "set"), world);
        write_chunks(writer, 0, 1, Split::even, world);
    }
    EXPECT_EQ(test::message_of<UserError>([&] { DatasetWriter(other, world); }), expected);
    DatasetWriter(config(scratch / "set"), world).finish();
    EXPECT_EQ(test::message_of<UserError>([&] { DatasetWriter(other, world); }), expected);
}

TEST(DatasetWriter, NamesANotFiniteActivationAndKeepsNothing) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    DatasetWriter writer(config(scratch / "set"), world);
    const Shard mine = part_of({0, 40}, Split::even, world);
    std::vector<float> rows = made_up_rows(mine);
    if (world.rank() == world.size() - 1)
        rows[rows.size() - 1 - 2 * d_model] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(test::message_of<UserError>([&] { writer.write_chunk(rows, ""); }),
              scratch / "set" +
                  ": activation nan at layer 1, token 39 of chunk 0; nothing of it is kept");
    EXPECT_EQ(writer.chunks(), 0);
    write_chunks(writer, 0, 1, Split::even, world);
    EXPECT_EQ(writer.tokens(), 40);
}

}  // namespace
}  // namespace clt
