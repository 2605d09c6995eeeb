// What the reader accepts beyond our own writer's layout, and what it refuses, with the message.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include "clt/data/dataset.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "data/manifest.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

constexpr Index rows = 5;
constexpr Index d_model = 3;

/// A chunk with these layers; element = 100 * layer + 10 * row + column, targets negative.
void write_chunk(const std::string& path, const std::vector<Index>& layers, Index n = rows,
                 Index d = d_model, H5Type type = H5Type::float32) {
    H5File file = H5File::create(path);
    for (const Index layer : layers)
        for (const int sign : {1, -1}) {
            std::vector<float> values;
            for (Index r = 0; r < n; ++r)
                for (Index c = 0; c < d; ++c)
                    values.push_back(static_cast<float>(sign * (100 * layer + 10 * r + c)));
            std::vector<std::byte> bytes(values.size() * 8);
            std::memcpy(bytes.data(), values.data(), values.size() * 4);
            file.create_dataset(fmt::format("layer_{}/{}", layer, sign > 0 ? "inputs" : "targets"),
                                type, n, d)
                .write({0, n}, bytes.data());
        }
    file.close();
}

const std::string metadata = R"({"num_layers": 3, "d_model": 3, "total_tokens": 10})";

/// Two chunks of layers 0, 2, 10, as rank 0 writes them.
void write_set(const std::string& folder) {
    make_writable_folder(folder);
    write_chunk(folder + "/chunk_0.hdf5", {0, 2, 10});
    write_chunk(folder + "/chunk_3.h5", {0, 2, 10});
    write_file(folder + "/index.bin", format_manifest({{0, rows}, {3, rows}}));
    write_file(folder + "/metadata.json", metadata);
}

TEST(ActivationDataset, SortsLayersByNumberAndPrefersTheShortSuffix) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    if (world.rank() == 0) {
        write_set(scratch / "set");
        write_file(scratch / "set/chunk_3.hdf5", "not this one");
    }
    world.barrier();
    const ActivationDataset dataset(scratch / "set", world);
    EXPECT_EQ(dataset.layer_ids(), (std::vector<Index>{0, 2, 10}));
    EXPECT_EQ(dataset.dtype(), DType::float32);  // metadata does not say: the file does
    EXPECT_EQ(dataset.chunks()[1].id, 3);
    EXPECT_EQ(dataset.chunks()[1].path, scratch / "set/chunk_3.h5");
    // Only the last rank reads rows; the others take part with none.
    const Shard mine = world.rank() == world.size() - 1 ? Shard{1, 4} : Shard{};
    std::vector<std::byte> bytes;
    dataset.read(1, mine, bytes, world);
    ASSERT_EQ(static_cast<Index>(bytes.size()), mine.size() * 3 * 2 * d_model * 4);
    std::size_t at = 0;
    for (Index r = mine.begin; r < mine.end; ++r)
        for (const int layer : {0, 2, 10})
            for (const int sign : {1, -1})
                for (Index c = 0; c < d_model; ++c, at += 4) {
                    float value = 0;
                    std::memcpy(&value, bytes.data() + at, 4);
                    EXPECT_EQ(value, static_cast<float>(sign * (100 * layer + 10 * r + c)));
                }
}

struct Broken {
    const char* name;
    std::function<void(const std::string&)> breaks;  // on rank 0
    std::string message;                             // "F" stands for the folder
};

const std::string stats_of_2 =
    R"({"0": {"inputs": {"mean": [1, 2], "std": [1, 2]}, "targets": {"mean": [], "std": []}},)"
    R"( "2": {}, "10": {}})";

/// Statistics of layers 0, 2, 10, all mean 0 and std `other` but the first std.
std::string stats_with(double first, double other) {
    std::string text;
    for (const int layer : {0, 2, 10})
        for (const char* part : {"inputs", "targets"})
            text += fmt::format(R"({}"{}": {{"mean": [0, 0, 0], "std": [{}, {}, {}]}})",
                                part[0] == 'i'
                                    ? fmt::format(R"({}"{}": {{)", layer > 0 ? ", " : "", layer)
                                    : ", ",
                                part, text.empty() ? first : other, other, other) +
                    (part[0] == 't' ? "}" : "");
    return "{" + text + "}";
}

const std::vector<Broken> all_broken{
    {"no_folder", [](const std::string& f) { std::filesystem::remove_all(f); },
     "F: no such folder, expected an activation data set"},
    {"no_metadata", [](const std::string& f) { std::filesystem::remove(f + "/metadata.json"); },
     "F: not an activation data set: metadata.json is missing (was its generation finished?)"},
    {"not_json", [](const std::string& f) { write_file(f + "/metadata.json", "{"); },
     "F/metadata.json:1:2: ends in the middle of an object: cut"},
    {"no_d_model",
     [](const std::string& f) {
         write_file(f + "/metadata.json", R"({"num_layers": 3, "total_tokens": 10})");
     },
     "F/metadata.json: d_model is missing, expected a whole number"},
    {"unknown_dtype",
     [](const std::string& f) {
         write_file(f + "/metadata.json",
                    R"({"num_layers": 3, "d_model": 3, "total_tokens": 10, "dtype": "int8"})");
     },
     "F/metadata.json: dtype = \"int8\", expected \"float32\", \"float16\" or \"bfloat16\""},
    {"missing_chunk", [](const std::string& f) { std::filesystem::remove(f + "/chunk_0.hdf5"); },
     "F/chunk_0.hdf5: missing, but index.bin lists it"},
    {"stats_length", [](const std::string& f) { write_file(f + "/norm_stats.json", stats_of_2); },
     "F/norm_stats.json: layer 0 inputs mean has 2 numbers, expected 3 (d_model)"},
    {"layer_count",
     [](const std::string& f) {
         write_chunk(f + "/chunk_3.h5", {0, 2});
     },
     "F/chunk_3.h5: holds 2 layer_<id> groups, metadata.json says num_layers = 3"},
    {"other_layers",
     [](const std::string& f) {
         write_chunk(f + "/chunk_3.h5", {0, 2, 11});
     },
     "F/chunk_3.h5: holds no group layer_10, which the first chunk has"},
    {"huge_width",
     [](const std::string& f) {
         write_file(f + "/metadata.json",
                    R"({"num_layers": 3, "d_model": 268435456, "total_tokens": 10})");
     },
     "F/chunk_0.hdf5: layer_0/inputs has width 3, metadata.json says d_model = 268435456"},
    {"negative_deviation",
     [](const std::string& f) { write_file(f + "/norm_stats.json", stats_with(-1, 1)); },
     "F/norm_stats.json: layer 0 inputs std = [-1, 1, 1], expected numbers of 0 or more, not -1"},
    {"zero_deviation",
     [](const std::string& f) { write_file(f + "/norm_stats.json", stats_with(0, 1)); },
     "F/norm_stats.json: 0.inputs.std[0] = 0, but the column is not constant: F/chunk_0.hdf5 has "
     "10 beside the mean 0; make the statistics anew"},
    {"row_count",
     [](const std::string& f) {
         write_chunk(f + "/chunk_3.h5", {0, 2, 10}, rows - 1);
     },
     "F/chunk_3.h5: layer_0/inputs has 4 rows, index.bin says 5"},
    {"width",
     [](const std::string& f) {
         write_chunk(f + "/chunk_3.h5", {0, 2, 10}, rows, d_model + 1);
     },
     "F/chunk_3.h5: layer_0/inputs has width 4, metadata.json says d_model = 3"},
    {"type",
     [](const std::string& f) {
         write_chunk(f + "/chunk_3.h5", {0, 2, 10}, rows, d_model, H5Type::uint16);
     },
     "F/chunk_3.h5: layer_0/inputs is stored as uint16 (bfloat16 bits), metadata.json says dtype = "
     "float32"},
};

class BrokenDataset : public testing::TestWithParam<Broken> {};

TEST_P(BrokenDataset, IsRefusedOnEveryRankWithOneSentence) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const std::string folder = scratch / "set";
    if (world.rank() == 0) {
        write_set(folder);
        GetParam().breaks(folder);
    }
    world.barrier();
    std::string expected = GetParam().message;
    for (std::size_t at = 0; (at = expected.find("F/", at)) != std::string::npos;
         at += folder.size())
        expected.replace(at, 1, folder);
    if (expected.starts_with("F:")) expected.replace(0, 1, folder);
    EXPECT_EQ(test::message_of<UserError>([&] {
                  const ActivationDataset dataset(folder, world);
                  std::vector<std::byte> bytes;
                  for (std::size_t chunk = 0; chunk < 2; ++chunk)
                      dataset.read(chunk, shard_of(rows, world.rank(), world.size()), bytes, world);
              }),
              expected);
}

INSTANTIATE_TEST_SUITE_P(All, BrokenDataset, testing::ValuesIn(all_broken),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(ActivationDataset, ATruncatedChunkIsNamed) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    if (world.rank() == 0) write_set(scratch / "set");
    world.barrier();
    const ActivationDataset dataset(scratch / "set", world);
    world.barrier();
    if (world.rank() == 0) std::filesystem::resize_file(scratch / "set/chunk_3.h5", 700);
    world.barrier();
    std::vector<std::byte> bytes;
    EXPECT_NE(test::message_of<UserError>([&] {
                  dataset.read(1, {0, rows}, bytes, world);
              }).find("chunk_3.h5"),
              std::string::npos);
}

TEST(ActivationDataset, AReportListsEveryBrokenChunk) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const std::string folder = scratch / "set";
    if (world.rank() == 0) {
        write_set(folder);
        write_chunk(folder + "/chunk_0.hdf5", {0, 2, 10}, rows - 1);
        write_chunk(folder + "/chunk_3.h5", {0, 2, 10}, rows, d_model + 1);
    }
    world.barrier();
    std::vector<std::string> problems;
    const ActivationDataset dataset(folder, world, {.problems = &problems});
    EXPECT_EQ(
        problems,
        (std::vector<std::string>{
            folder + "/chunk_0.hdf5: layer_0/inputs has 4 rows, index.bin says 5",
            folder + "/chunk_3.h5: layer_0/inputs has width 4, metadata.json says d_model = 3"}));
}

TEST(ActivationDataset, StatisticsThatLackALayerCountAsNone) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    if (world.rank() == 0) {
        write_set(scratch / "set");
        write_file(scratch / "set/norm_stats.json", "{}");
    }
    world.barrier();
    EXPECT_TRUE(ActivationDataset(scratch / "set", world).stats().empty());
}

}  // namespace
}  // namespace clt
