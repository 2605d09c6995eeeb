// The writer through our own reader: layout, shuffle, statistics, resume, refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clt/data/dataset.hpp"
#include "clt/data/writer.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "data/column_statistics.hpp"
#include "data/row_exchange.hpp"
#include "support/file_size_limit.hpp"
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

TEST(DatasetWriter, RefusesWhatTheStorageTypeCannotHold) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    struct Trial {
        DType dtype;
        float value;
        const char* expected;  // empty: it is stored
    };
    const std::vector<Trial> trials{
        {DType::float16, 65519.0F, ""},
        {DType::float16, -65520.0F,
         " -65520 at layer 1, token 39 of chunk 0 is beyond float16 (65504); use data.dtype = "
         "\"bfloat16\" or \"float32\"; nothing of the chunk is kept"},
        {DType::bfloat16, 3.39e38F, ""},
        {DType::bfloat16, std::numeric_limits<float>::max(),
         " 3.4028235e+38 at layer 1, token 39 of chunk 0 is beyond bfloat16 (3.3895314e+38); use "
         "data.dtype = \"float32\"; nothing of the chunk is kept"},
        {DType::float32, std::numeric_limits<float>::max(), ""}};
    for (std::size_t i = 0; i < trials.size(); ++i) {
        const std::string folder = scratch / std::to_string(i);
        DatasetWriter writer(config(folder, trials[i].dtype), world);
        std::vector<float> rows = made_up_rows(part_of({0, 40}, Split::even, world));
        if (world.rank() == world.size() - 1) rows[rows.size() - 1 - 2 * d_model] = trials[i].value;
        if (*trials[i].expected == '\0') {
            writer.write_chunk(rows, "");
            writer.finish();
            continue;
        }
        EXPECT_EQ(test::message_of<UserError>([&] { writer.write_chunk(rows, ""); }),
                  folder + ": activation" + trials[i].expected);
        EXPECT_EQ(writer.chunks(), 0);
        EXPECT_FALSE(std::filesystem::exists(folder + "/chunk_0.hdf5"));
    }
}

/// Flips a bit of a byte of a file. Rank 0; collective.
void flip(const std::string& path, std::size_t byte, const Communicator& world) {
    if (world.rank() == 0) {
        std::string bytes = read_file(path);
        bytes.at(byte) = static_cast<char>(bytes.at(byte) ^ 4);
        write_file(path, bytes);
    }
    world.barrier();
}

/// Place in the file of the first byte of a stored row, looked for by its content.
std::size_t place_of(const std::string& path, const std::vector<std::byte>& content) {
    const std::string bytes = read_file(path);
    const std::size_t at =
        bytes.find(std::string(reinterpret_cast<const char*>(content.data()), content.size()));
    EXPECT_NE(at, std::string::npos);
    return at;
}

TEST(DatasetWriter, AChangedValueIsFoundByItsChecksum) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const std::string folder = scratch / "set";
    {
        DatasetWriter writer(config(folder), world);
        write_chunks(writer, 0, 3, Split::even, world);
        writer.finish();
    }
    std::size_t place = 0;
    {
        // Row 30 of chunk 1, layer 2 targets: beyond the rows that a run with held-out rows reads.
        const ActivationDataset dataset(folder, world);
        const std::vector<std::byte> rows = whole_chunk(dataset, 1, world);
        const auto first = rows.begin() + (30 * width + 5 * d_model) * 4;
        place = place_of(folder + "/chunk_1.hdf5", {first, first + d_model * 4});
    }
    flip(folder + "/chunk_1.hdf5", place, world);
    const std::string expected =
        folder +
        "/chunk_1.hdf5: layer_2/targets does not match its checksum: it was damaged or changed "
        "after it was written; copy or generate this chunk again";
    std::vector<std::byte> rows;
    const Shard part = shard_of(10, world.rank(), world.size());
    const ActivationDataset off(folder, world);
    off.read(1, part, rows, world);
    for (const VerifyData verify : {VerifyData::first_use, VerifyData::always}) {
        const ActivationDataset dataset(folder, world, {.verify = verify});
        dataset.read(0, part, rows, world);
        dataset.read(2, {}, rows, world);
        for (const Shard wanted : {part, Shard{part.begin + 3, part.end + 3}, Shard{0, 31}})
            EXPECT_EQ(test::message_of<UserError>([&] { dataset.read(1, wanted, rows, world); }),
                      expected);
    }
    flip(folder + "/chunk_1.hdf5", place, world);
    const ActivationDataset mended(folder, world, {.verify = VerifyData::first_use});
    mended.read(1, part, rows, world);
    flip(folder + "/chunk_1.hdf5", place, world);
    mended.read(1, part, rows, world);  // it was verified before
    const ActivationDataset always(folder, world, {.verify = VerifyData::always});
    EXPECT_EQ(test::message_of<UserError>([&] { always.read(1, part, rows, world); }), expected);
}

TEST(DatasetWriter, AFlippedBitOfASmallFileIsFound) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const std::string folder = scratch / "set";
    {
        DatasetWriter writer(config(folder), world);
        write_chunks(writer, 0, 2, Split::even, world);
    }
    const std::string progress = folder + "/progress.bin";
    const auto length = std::filesystem::file_size(progress);
    world.barrier();
    for (std::size_t i = 0; i < 40; ++i) {
        const std::size_t byte = i * (length - 1) / 39;
        flip(progress, byte, world);
        EXPECT_THROW(DatasetWriter(config(folder), world), UserError) << byte;
        flip(progress, byte, world);
    }
    {
        DatasetWriter writer(config(folder), world);
        write_chunks(writer, 2, 3, Split::even, world);
        writer.finish();
    }
    for (const char* name : {"/index.bin", "/norm_stats.json"}) {
        flip(folder + name, 20, world);
        EXPECT_EQ(test::message_of<UserError>([&] {
                      ActivationDataset(folder, world);
                  }).find(folder + name + ": does not match its checksum"),
                  0U);
        flip(folder + name, 20, world);
    }
    const ActivationDataset whole(folder, world);
}

// Identity is content: neither where a set lies, nor when it was made or how it is compressed.
TEST(DatasetWriter, TheFingerprintIsOfTheContent) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const auto make = [&](const std::string& folder, int gzip, std::uint64_t seed) {
        DatasetWriterConfig settings = config(folder);
        settings.gzip = gzip;
        settings.seed = seed;
        settings.model_name = "model of " + folder;
        DatasetWriter writer(settings, world);
        write_chunks(writer, 0, 3, Split::last_rank_has_all, world);
        writer.finish();
        const ActivationDataset dataset(folder, world);
        EXPECT_TRUE(dataset.has_checksums());
        return dataset.fingerprint();
    };
    const std::string first = make(scratch / "a", 0, 7);
    EXPECT_EQ(first.size(), 16U);
    EXPECT_EQ(make(scratch / "b", 4, 7), first);
    EXPECT_NE(make(scratch / "c", 0, 8), first);

    // Chunks that trade places, other statistics.
    const auto change = [&](const std::function<void(const std::string&)>& work) {
        const std::string folder = scratch / "changed";
        if (world.rank() == 0) {
            std::filesystem::remove_all(folder);
            std::filesystem::copy(scratch / "a", folder);
            auto metadata = nlohmann::json::parse(read_file(folder + "/metadata.json"));
            metadata.erase("checksums");
            metadata["created"] = "another day";
            write_file(folder + "/metadata.json", metadata.dump());
            work(folder);
        }
        world.barrier();
        return ActivationDataset(folder, world).fingerprint();
    };
    EXPECT_EQ(change([](const std::string&) {}), first);
    EXPECT_NE(change([](const std::string& folder) {
                  auto stats = nlohmann::json::parse(read_file(folder + "/norm_stats.json"));
                  stats["1"]["inputs"]["mean"][2] = 0.125;
                  write_file(folder + "/norm_stats.json", stats.dump());
              }),
              first);
    EXPECT_NE(change([](const std::string& folder) {
                  std::filesystem::remove(folder + "/norm_stats.json");
              }),
              first);
    EXPECT_NE(change([&](const std::string& folder) {
                  for (const char* name : {"/index.bin", "/chunk_2.hdf5"})
                      std::filesystem::copy(scratch / "c" + name, folder + name,
                                            std::filesystem::copy_options::overwrite_existing);
              }),
              first);
}

TEST(DatasetWriter, NeitherCompleteNorGoingOnWithoutAllChunks) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const std::string folder = scratch / "set";
    const auto cut = [&](const char* name, bool whole) {
        if (world.rank() == 0) {
            if (whole)
                std::filesystem::remove(folder + name);
            else
                std::filesystem::resize_file(folder + name,
                                             std::filesystem::file_size(folder + name) - 1);
        }
        world.barrier();
        return test::message_of<UserError>([&] { DatasetWriter(config(folder), world); });
    };
    for (const bool finished : {false, true}) {
        {
            DatasetWriter writer(config(folder), world);
            write_chunks(writer, 0, 3, Split::even, world);
            if (finished) writer.finish();
        }
        EXPECT_EQ(cut("/chunk_1.hdf5", false).find(folder + "/chunk_1.hdf5: the file is cut"), 0U);
        EXPECT_EQ(cut("/chunk_1.hdf5", true).find(folder + "/chunk_1.hdf5: missing, but "), 0U);
        if (world.rank() == 0) std::filesystem::remove_all(folder);
        world.barrier();
    }
}

TEST(DatasetWriter, AFullDiskWhileCompressingLeavesWhatWasThere) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    DatasetWriterConfig settings = config(scratch / "set");
    settings.gzip = 4;
    DatasetWriter writer(settings, world);
    write_chunks(writer, 0, 1, Split::even, world);
    {
        // 1 MiB is what a file's metadata may take.
        const test::FileSizeLimit limit(rlim_t{1} << 20);
        EXPECT_NE(test::message_of<UserError>([&] {
                      write_chunks(writer, 1, 2, Split::even, world);
                  }).find("File too large"),
                  std::string::npos);
    }
    EXPECT_EQ(writer.chunks(), 1);
    EXPECT_FALSE(std::filesystem::exists(scratch / "set/chunk_1.hdf5.tmp"));
    write_chunks(writer, 1, 3, Split::even, world);
    writer.finish();
    EXPECT_EQ(ActivationDataset(scratch / "set", world).tokens(), 74);
}

}  // namespace
}  // namespace clt
