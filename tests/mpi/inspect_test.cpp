// `clt inspect`: what it says of whole files, and that it finds what is wrong with damaged ones.
#include "clt/analyse/inspect.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>

#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/train/checkpoint.hpp"
#include "support/scratch.hpp"
#include "support/test_backend.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::Scratch;

void expect_says(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in:\n" << text;
}

std::string golden(const std::string& kind) {
    return std::string(CLT_SOURCE_DIR) + "/tests/golden/datasets/" + kind + "/tiny/synthetic_train";
}

struct Change {
    Index layer, row, column;
    float value;
};

// Two chunks of 5 and 3 rows, 2 layers, d_model 4, float32. Rank 0 writes.
void write_dataset(const std::string& folder, const Communicator& world,
                   const std::optional<Change>& change = std::nullopt) {
    world.together([&] {
        if (world.rank() != 0) return;
        fs::create_directories(folder);
        const Index rows_of[2] = {5, 3};
        std::string index;
        for (int chunk = 0; chunk < 2; ++chunk) {
            const Index rows = rows_of[chunk];
            H5File file = H5File::create(fmt::format("{}/chunk_{}.hdf5", folder, chunk));
            for (int layer = 0; layer < 2; ++layer)
                for (const char* part : {"inputs", "targets"}) {
                    std::vector<float> values(static_cast<std::size_t>(rows * 4));
                    for (std::size_t i = 0; i < values.size(); ++i)
                        values[i] = static_cast<float>(i % 7) - 3.0F;
                    if (change && chunk == 1 && layer == change->layer &&
                        std::strcmp(part, "targets") == 0)
                        values[static_cast<std::size_t>(change->row * 4 + change->column)] =
                            change->value;
                    file.create_dataset(fmt::format("layer_{}/{}", layer, part), H5Type::float32,
                                        rows, 4, 16384)
                        .write({0, rows}, values.data());
                }
            file.close();
            const std::int32_t fields[2] = {chunk, static_cast<std::int32_t>(rows)};
            const std::int64_t offset = chunk == 0 ? 0 : 5;
            index.append(reinterpret_cast<const char*>(fields), 8);
            index.append(reinterpret_cast<const char*>(&offset), 8);
        }
        write_file(folder + "/index.bin", index);
        write_file(folder + "/metadata.json",
                   R"({"num_layers":2,"d_model":4,"total_tokens":8,"dtype":"float32",)"
                   R"("model_name":"tiny"})");
        const std::string columns = R"({"mean":[0,0,0,0],"std":[1,1,1,1]})";
        const std::string layer = "{\"inputs\":" + columns + ",\"targets\":" + columns + "}";
        write_file(folder + "/norm_stats.json", "{\"0\":" + layer + ",\"1\":" + layer + "}");
    });
}

TEST(Inspect, ADataSetInWords) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string folder = scratch / "set";
    write_dataset(folder, world);
    for (const bool verify : {false, true}) {
        const std::string text = inspect(folder, verify, world);
        expect_says(text, "activation data set");
        expect_says(text, "2 (0 to 1), d_model 4");
        expect_says(text, "8 in 2 chunks");
        expect_says(text, "float32");
        expect_says(text, "model_name   tiny");
        expect_says(text, "chunk_1.hdf5  3 rows");
        EXPECT_EQ(text.find("warning"), std::string::npos) << text;
        EXPECT_EQ(text.find("verified") != std::string::npos, verify);
    }
    expect_says(inspect(folder + "/chunk_0.hdf5", true, world), "rows       5");
}

TEST(Inspect, VerifyNamesChunkLayerAndRowOfABadNumber) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string folder = scratch / "set";
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        write_dataset(folder, world, Change{1, 2, 3, bad});
        inspect(folder, false, world);  // reads no activations
        const std::string expected =
            folder + "/chunk_1.hdf5: layer_1 targets, row 2: NaN or infinite";
        EXPECT_EQ(message_of<UserError>([&] { inspect(folder, true, world); }), expected);
        EXPECT_EQ(message_of<UserError>([&] { inspect(folder + "/chunk_1.hdf5", true, world); }),
                  expected);
    }
}

TEST(Inspect, VerifyListsAllProblemsOfADataSet) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string folder = scratch / "set";
    write_dataset(folder, world, Change{0, 0, 0, std::numeric_limits<float>::infinity()});
    world.together([&] {
        if (world.rank() != 0) return;
        fs::remove(folder + "/norm_stats.json");
        const std::string chunk = read_file(folder + "/chunk_0.hdf5");
        write_file(folder + "/chunk_0.hdf5", chunk.substr(0, chunk.size() / 2));
        write_file(folder + "/chunk_7.hdf5", "left over");
    });
    const std::string message = message_of<UserError>([&] { inspect(folder, true, world); });
    expect_says(message, "/chunk_0.hdf5: ");
    // A cut first chunk already stops the reader; repaired, the rest shows.
    write_dataset(folder, world, Change{0, 0, 0, std::numeric_limits<float>::infinity()});
    world.together([&] {
        if (world.rank() != 0) return;
        fs::remove(folder + "/norm_stats.json");
        const std::string chunk = read_file(folder + "/chunk_1.hdf5");
        write_file(folder + "/chunk_1.hdf5", chunk.substr(0, chunk.size() - 1));
    });
    const std::string list = message_of<UserError>([&] { inspect(folder, true, world); });
    expect_says(list, "2 problems");
    expect_says(list, "norm_stats.json: missing");
    expect_says(list, "chunk_1.hdf5: the file is cut");
    EXPECT_NE(message_of<UserError>([&] { inspect(folder, false, world); }).find("the file is cut"),
              std::string::npos);
    write_dataset(folder, world);
    expect_says(inspect(folder, false, world), "warning: " + folder + "/chunk_7.hdf5: not listed");
}

TEST(Inspect, TheReferencesOwnDataSetsAndItsDefect) {
    const Communicator world = Communicator::world();
    for (const char* kind : {"float32", "float16", "float32_gzip"}) {
        const std::string text = inspect(golden(kind), true, world);
        expect_says(text, "400 in 2 chunks");
        EXPECT_EQ(text.find("warning"), std::string::npos) << text;
    }
    const std::string text =
        message_of<UserError>([&] { inspect(golden("bfloat16"), true, world); });
    for (const char* chunk : {"chunk_0", "chunk_1"})
        expect_says(text,
                    fmt::format("{}/{}.hdf5: no value is negative", golden("bfloat16"), chunk));
    expect_says(
        message_of<UserError>([&] { inspect(golden("bfloat16") + "/chunk_1.hdf5", true, world); }),
        "no value is negative");
}

TEST(Inspect, CheckpointsAndRunFolders) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string checkpoints = scratch / "checkpoints";
    world.together([&] {
        if (world.rank() != 0) return;
        fs::create_directory(checkpoints);
        write_file(scratch / "metrics.jsonl", "{\"step\":1}\n{\"step\":2}\n");
    });
    ModelConfig config;
    config.features = 6;
    config.k = 4;
    const auto backend = test::make_test_backend(world);
    const ProcessGrid grid(world, 1, world.size());
    Params params(*backend, {2, 3, 6}, grid.feature_shard(6), config, 1);
    Buffer<Index> silence(backend->memory(), params.local_rows(), Purpose::parameters);
    backend->zero(silence.span());
    for (const Index step : {Index{9}, Index{10}}) {
        CheckpointSnapshot snapshot;
        CheckpointState state;
        state.step = step;
        state.cursor = "{\"epoch\":3}";
        state.job = "[job]\nkind = \"train\"";
        state.extra = "{}";
        snapshot.take(*backend, grid, params, std::as_const(silence).span(), config, state);
        write_checkpoint(checkpoints, snapshot, world);
    }
    const std::string newest = checkpoints + "/step_10.h5";
    const std::string text = inspect(newest, true, world);
    expect_says(text, "2 layers, d_model 3, 6 features a layer: 108 parameters");
    expect_says(text, "batchtopk, k 4");
    expect_says(text, "step      10");
    expect_says(text, "{\"epoch\":3}");
    expect_says(text, "kind = \"train\"");
    expect_says(text, "verified");
    const std::string run = inspect(scratch.path(), true, world);
    expect_says(run, "step_9.h5");
    expect_says(run, "metrics.jsonl: 2 records\n  last: {\"step\":2}");

    const std::string whole = world.broadcast(world.rank() == 0 ? read_file(newest) : "");
    const auto replace = [&](const std::string& bytes) {
        world.together([&] {
            if (world.rank() == 0) write_file(newest, bytes);
        });
    };
    // One changed bit of a decoder weight; the file holds the parameters as this rank's do.
    std::vector<float> row(6);
    if (params.features().size() > 0)
        backend->download(Span<const float>(params.decoder(0).value.elements.subspan(0, 6)),
                          std::span<float>(row));
    world.broadcast(std::span(row), 0);
    std::string torn = whole;
    const std::size_t at = torn.find(std::string(reinterpret_cast<const char*>(row.data()), 24));
    ASSERT_NE(at, std::string::npos);
    torn[at + 5] = static_cast<char>(torn[at + 5] ^ 4);
    replace(torn);
    inspect(newest, false, world);
    EXPECT_EQ(
        message_of<UserError>([&] { inspect(newest, true, world); }),
        newest + ": array value/decoder/layer_0/weight, rows 0 to 5, does not match its checksum");
    replace(whole.substr(0, whole.size() - 1));
    expect_says(message_of<UserError>([&] { inspect(newest, false, world); }), "the file is cut");
    expect_says(inspect(scratch.path(), false, world), "not whole");
    expect_says(message_of<UserError>([&] { inspect(scratch.path(), true, world); }), newest);
}

TEST(Inspect, Safetensors) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string model = std::string(CLT_SOURCE_DIR) + "/examples/tiny-gpt2/model.safetensors";
    const std::string text = inspect(model, true, world);
    expect_says(text, "52 tensors");
    expect_says(text, "h.0.mlp.c_fc.weight     F32   [128, 512]");
    const std::string path = scratch / "bad.safetensors";
    world.together([&] {
        if (world.rank() != 0) return;
        const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                   R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}})";
        std::string bytes(8, '\0');
        const std::uint64_t length = header.size();
        std::memcpy(bytes.data(), &length, 8);
        const float a[2] = {1, 2};
        const std::uint16_t b[2] = {0, float_to_bfloat16(NAN)};
        bytes += header;
        bytes.append(reinterpret_cast<const char*>(a), 8);
        bytes.append(reinterpret_cast<const char*>(b), 4);
        write_file(path, bytes);
    });
    expect_says(inspect(path, false, world), "2 tensors, 4 numbers");
    EXPECT_EQ(message_of<UserError>([&] { inspect(path, true, world); }),
              path + ": tensor \"b\" is NaN or infinite at element 1");
}

TEST(Inspect, NamesWhatItCannotExplain) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    EXPECT_EQ(message_of<UserError>([&] { inspect(scratch / "no", false, world); }),
              scratch / "no: no such file or folder");
    expect_says(message_of<UserError>([&] { inspect(scratch.path(), false, world); }),
                "neither an activation data set");
    world.together([&] {
        if (world.rank() == 0) H5File::create(scratch / "other.h5").close();
    });
    expect_says(message_of<UserError>([&] { inspect(scratch / "other.h5", false, world); }),
                "neither a checkpoint nor a chunk");
}

}  // namespace
}  // namespace clt
