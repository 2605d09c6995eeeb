// Batch sources: which tokens come in which order, on every grid, with and without threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "clt/data/dataset.hpp"
#include "clt/data/sources.hpp"
#include "clt/data/writer.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

constexpr Index layers = 2;
constexpr Index d_model = 3;
constexpr Index width = 2 * layers * d_model;
const std::vector<Index> chunk_rows{37, 5, 24, 1};
constexpr Index all_rows = 67;

/// Element c of token t; t can be read off any element.
float element(Index t, Index c) {
    return static_cast<float>(t) + static_cast<float>(c) / 32;
}

void write_set(const std::string& folder, const Communicator& world, DType dtype = DType::float32) {
    DatasetWriter writer({.folder = folder,
                          .model_name = "none",
                          .dataset = "made up",
                          .split = "train",
                          .layers = layers,
                          .d_model = d_model,
                          .dtype = dtype,
                          .chunk_tokens = 24,
                          .seed = 3},
                         world);
    Index first = 0;
    for (const Index rows : chunk_rows) {
        const Shard mine = shard_of(rows, world.rank(), world.size());
        std::vector<float> values;
        for (Index t = first + mine.begin; t < first + mine.end; ++t)
            for (Index c = 0; c < width; ++c) values.push_back(element(t, c));
        writer.write_chunk(values, "");
        first += rows;
    }
    writer.finish();
}

DataConfig config(const std::string& folder) {
    DataConfig data;
    data.path = folder;
    data.batch_tokens = 8;
    data.normalization = "none";
    return data;
}

/// Scaled by the data set's own statistics. The I/O thread opens it: it may be reading another.
Normalization own_normalization(const DataConfig& data, const ProcessGrid& grid, Workers& threads) {
    Normalization normalization;
    threads.io.call([&] {
        normalization =
            normalization_of(ActivationDataset(data.path, grid.all()), data.normalization);
    });
    return normalization;
}
std::unique_ptr<BatchSource> training_source(const DataConfig& data, std::uint64_t seed,
                                             const ProcessGrid& grid, Backend& on,
                                             Workers& threads) {
    return make_training_source(data, own_normalization(data, grid, threads), seed, grid, on,
                                threads);
}
std::unique_ptr<BatchSource> evaluation_source(const DataConfig& data, Index max_tokens, bool whole,
                                               const ProcessGrid& grid, Backend& on,
                                               Workers& threads) {
    return make_evaluation_source(data, own_normalization(data, grid, threads), max_tokens, whole,
                                  grid, on, threads);
}

/// The tokens of the next n batches, in order, on every rank; checks every element on the way.
std::vector<Index> draw(BatchSource& source, Index n, const ProcessGrid& grid) {
    std::vector<Index> tokens;
    for (Index b = 0; b < n; ++b) {
        const HostBatch batch = source.next();
        EXPECT_EQ(batch.slice, grid.token_slice(batch.tokens));
        EXPECT_EQ(static_cast<Index>(batch.inputs.size()), batch.slice.size() * layers * d_model);
        std::vector<Index> of_batch(static_cast<std::size_t>(batch.tokens));
        for (Index i = 0; i < batch.slice.size(); ++i) {
            const auto row = static_cast<std::size_t>(i * layers * d_model);
            const auto token = static_cast<Index>(batch.inputs[row]);
            for (Index layer = 0; layer < layers; ++layer)
                for (Index c = 0; c < d_model; ++c) {
                    const auto at = row + static_cast<std::size_t>(layer * d_model + c);
                    EXPECT_EQ(batch.inputs[at], element(token, 2 * layer * d_model + c));
                    EXPECT_EQ(batch.targets[at], element(token, (2 * layer + 1) * d_model + c));
                }
            of_batch[static_cast<std::size_t>(batch.slice.begin + i)] = token;
        }
        grid.all().all_reduce_sum(std::span<Index>(of_batch));
        tokens.insert(tokens.end(), of_batch.begin(), of_batch.end());
    }
    return tokens;
}

/// Batches are pinned for it.
Backend& backend() {
    static const std::unique_ptr<Backend> owner = make_backend("cpu", Communicator::world());
    return *owner;
}

/// All sources of a test share them, as those of a run do.
Workers& workers() {
    static Workers owner;
    return owner;
}

/// One process's own world: the grid every other is compared with.
struct Alone {
    Alone()
        : world(Communicator::world().split(Communicator::world().rank(), 0)), grid(world, 1, 1) {}
    Communicator world;
    ProcessGrid grid;
};

struct Settings {
    const char* sampling;
    Index window_tokens;
    Index batch_tokens;
    Index prefetch;
};

const std::vector<Settings> all_settings{
    {"sequential", 0, 8, 3},     // batches below a chunk
    {"sequential", 10, 8, 0},    // windows
    {"sequential", 0, 150, 1},   // batches over two epochs
    {"random_chunk", 0, 50, 1},  // batches over several chunks
    {"random_chunk", 10, 8, 3},
};

DataConfig apply(DataConfig data, const Settings& settings) {
    data.sampling = settings.sampling;
    data.window_tokens = settings.window_tokens;
    data.batch_tokens = settings.batch_tokens;
    data.prefetch = settings.prefetch;
    return data;
}

TEST(TrainingSource, SameTokensInTheSameOrderOnEveryGridAndPrefetch) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    const Alone alone;
    for (const Settings& settings : all_settings) {
        const Index n = std::max<Index>(2, 2 * all_rows / settings.batch_tokens + 1);
        Settings plain = settings;
        plain.prefetch = 0;
        const auto reference = training_source(apply(config(scratch / "set"), plain), 42,
                                               alone.grid, backend(), workers());
        const std::vector<Index> expected = draw(*reference, n, alone.grid);
        for (Index epoch = 0; (epoch + 1) * all_rows <= static_cast<Index>(expected.size());
             ++epoch) {
            const std::set<Index> seen(expected.begin() + epoch * all_rows,
                                       expected.begin() + (epoch + 1) * all_rows);
            EXPECT_EQ(seen.size(), static_cast<std::size_t>(all_rows));  // every row once
        }
        EXPECT_FALSE(std::equal(expected.begin(), expected.begin() + all_rows,
                                expected.begin() + all_rows));  // epochs reshuffle
        for (int data = 1; data <= world.size(); data *= 2) {
            const ProcessGrid grid(world, data, world.size() / data);
            const auto source = training_source(apply(config(scratch / "set"), settings), 42, grid,
                                                backend(), workers());
            EXPECT_EQ(source->tokens(), all_rows);
            EXPECT_EQ(draw(*source, n, grid), expected)
                << settings.sampling << " window " << settings.window_tokens << " batch "
                << settings.batch_tokens << " prefetch " << settings.prefetch;
        }
    }
}

TEST(TrainingSource, SeekInMidEpochContinuesBitForBitOnEveryGrid) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    const Alone alone;
    for (const char* sampling : {"sequential", "random_chunk"}) {
        DataConfig data = config(scratch / "set");
        data.sampling = sampling;
        data.prefetch = 3;
        const auto reference = training_source(data, 42, alone.grid, backend(), workers());
        for (Index behind = 0; behind < 5; ++behind) {
            const std::string cursor = reference->cursor();
            const std::vector<Index> expected = draw(*reference, 3, alone.grid);
            const ProcessGrid grid(world, world.size() > 1 ? 2 : 1,
                                   world.size() > 1 ? world.size() / 2 : 1);
            const auto source = training_source(data, 42, grid, backend(), workers());
            draw(*source, behind % 2, grid);  // also away from a place already begun
            source->seek(cursor);
            EXPECT_EQ(source->cursor(), cursor);
            EXPECT_EQ(draw(*source, 3, grid), expected) << cursor;
            EXPECT_EQ(source->cursor(), reference->cursor());
        }
    }
}

TEST(TrainingSource, RefusesACursorOfAnotherRun) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    write_set(scratch / "other", world, DType::float16);
    const ProcessGrid grid(world, 1, world.size());
    const DataConfig data = config(scratch / "set");
    const auto source = training_source(data, 42, grid, backend(), workers());
    const std::string cursor = source->cursor();
    EXPECT_EQ(test::message_of<UserError>(
                  [&] { training_source(data, 43, grid, backend(), workers())->seek(cursor); }),
              scratch / "set" +
                  ": the run to continue drew its batches with job.seed = 42, this job says 43");
    EXPECT_EQ(test::message_of<UserError>([&] {
                  training_source(config(scratch / "other"), 42, grid, backend(), workers())
                      ->seek(cursor);
              }),
              scratch / "other" + ": is another data set than the run to continue was trained on");
    DataConfig windows = data;
    windows.window_tokens = 10;
    EXPECT_NE(test::message_of<UserError>(
                  [&] { training_source(windows, 42, grid, backend(), workers())->seek(cursor); })
                  .find("window_tokens = 0, holdout_fraction = 0, this job says sampling = "
                        "sequential, window_tokens = 10"),
              std::string::npos);
    EXPECT_THROW(source->seek("{}"), UserError);
    EXPECT_THROW(source->seek("not JSON"), UserError);
}

TEST(EvaluationSource, HeldOutRowsAreNeverTrainedOn) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    const ProcessGrid grid(world, 1, world.size());
    DataConfig data = config(scratch / "set");
    data.holdout_fraction = 0.2;
    const auto training = training_source(data, 42, grid, backend(), workers());
    const auto evaluation = evaluation_source(data, 0, false, grid, backend(), workers());
    ASSERT_NE(evaluation, nullptr);
    EXPECT_EQ(evaluation->tokens(), 7 + 1 + 5);
    EXPECT_EQ(training->tokens(), all_rows - 13);
    const std::vector<Index> trained = draw(*training, 20, grid);
    std::vector<Index> judged = draw(*evaluation, 2, grid);  // 8 tokens, then 5
    EXPECT_EQ(judged.size(), 13U);
    EXPECT_EQ(evaluation->next().tokens, 0);
    EXPECT_EQ(evaluation->next().tokens, 0);
    std::set<Index> both(trained.begin(), trained.end());
    EXPECT_EQ(both.size(), static_cast<std::size_t>(all_rows - 13));
    both.insert(judged.begin(), judged.end());
    EXPECT_EQ(both.size(), static_cast<std::size_t>(all_rows));
    draw(*training, 1, grid);  // goes on behind the other source
}

TEST(EvaluationSource, WholeSetInStoredOrderOrItsFirstTokens) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    const ProcessGrid grid(world, world.size(), 1);
    const DataConfig data = config(scratch / "set");
    EXPECT_EQ(evaluation_source(data, 0, false, grid, backend(), workers()), nullptr);
    const auto whole = evaluation_source(data, 0, true, grid, backend(), workers());
    const std::vector<Index> tokens = draw(*whole, 9, grid);
    EXPECT_EQ(tokens.size(), static_cast<std::size_t>(all_rows));
    EXPECT_EQ(whole->next().tokens, 0);

    const ActivationDataset dataset(scratch / "set", world);
    std::vector<Index> stored;
    for (std::size_t chunk = 0; chunk < chunk_rows.size(); ++chunk) {
        std::vector<std::byte> bytes;
        dataset.read(chunk, {0, chunk_rows[chunk]}, bytes, world);
        std::vector<float> values(bytes.size() / 4);
        to_float(DType::float32, bytes.data(), values.data(), static_cast<Index>(values.size()));
        for (std::size_t at = 0; at < values.size(); at += width)
            stored.push_back(static_cast<Index>(values[at]));
    }
    EXPECT_EQ(tokens, stored);

    const auto some = evaluation_source(data, 20, true, grid, backend(), workers());
    EXPECT_EQ(draw(*some, 3, grid), std::vector<Index>(stored.begin(), stored.begin() + 20));
    EXPECT_EQ(some->next().tokens, 0);
}

TEST(Sources, NormaliseAndSayHowErrorsScaleBack) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    const ProcessGrid grid(world, 1, world.size());
    DataConfig data = config(scratch / "set");
    const HostBatch plain_view =
        evaluation_source(data, 8, true, grid, backend(), workers())->next();
    EXPECT_EQ(plain_view.tokens, 8);
    const auto plain_source = evaluation_source(data, 8, true, grid, backend(), workers());
    const HostBatch plain = plain_source->next();
    EXPECT_EQ(plain_source->error_scale(), std::vector<float>(layers * d_model, 1.0F));

    data.normalization = "sqrt_d_model";
    const auto scaled_source = evaluation_source(data, 8, true, grid, backend(), workers());
    const HostBatch scaled = scaled_source->next();
    for (std::size_t i = 0; i < plain.inputs.size(); ++i) {
        EXPECT_FLOAT_EQ(scaled.inputs[i], plain.inputs[i] * std::sqrt(3.0F));
        EXPECT_FLOAT_EQ(scaled.targets[i], plain.targets[i] * std::sqrt(3.0F));
    }
    EXPECT_FLOAT_EQ(scaled_source->error_scale()[0], 1 / std::sqrt(3.0F));

    data.normalization = "mean_std";
    const auto standard_source = evaluation_source(data, 8, true, grid, backend(), workers());
    const HostBatch standard = standard_source->next();
    const ActivationDataset dataset(scratch / "set", world);
    for (std::size_t i = 0; i < plain.inputs.size(); ++i) {
        const LayerStats& layer = dataset.stats()[i / d_model % layers];
        const std::size_t c = i % d_model;
        EXPECT_FLOAT_EQ(standard.inputs[i],
                        (plain.inputs[i] - layer.inputs.mean[c]) / (layer.inputs.std[c] + 1e-6F));
        EXPECT_FLOAT_EQ(standard.targets[i], (plain.targets[i] - layer.targets.mean[c]) /
                                                 (layer.targets.std[c] + 1e-6F));
        EXPECT_EQ(standard_source->error_scale()[i % (layers * d_model)],
                  layer.targets.std[c] + 1e-6F);
    }
}

TEST(Sources, MeanStdNeedsStatistics) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    if (world.rank() == 0) std::filesystem::remove(scratch / "set/norm_stats.json");
    world.barrier();
    const ProcessGrid grid(world, 1, world.size());
    DataConfig data = config(scratch / "set");
    data.normalization = "mean_std";
    EXPECT_EQ(
        test::message_of<UserError>([&] { training_source(data, 42, grid, backend(), workers()); }),
        scratch / "set/norm_stats.json" +
            ": missing, or without some of the 2 layers; data.normalization = \"mean_std\" "
            "needs it");
}

TEST(Sources, ANotFiniteActivationNamesChunkLayerAndRow) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    {
        H5File file = H5File::create(scratch / "set/chunk_2.hdf5", &world);
        for (const char* name :
             {"layer_0/inputs", "layer_0/targets", "layer_1/inputs", "layer_1/targets"}) {
            std::vector<float> values(24 * d_model, 1.0F);
            if (name == std::string("layer_1/targets"))
                values[20 * d_model + 1] = -std::numeric_limits<float>::infinity();
            file.create_dataset(name, H5Type::float32, 24, d_model)
                .write(world.rank() == 0 ? Shard{0, 24} : Shard{}, values.data());
        }
        file.close();
    }
    const ProcessGrid grid(world, 1, world.size());
    for (const Index prefetch : {0, 3})
        for (const Index window : {0, 10}) {
            DataConfig data = config(scratch / "set");
            data.prefetch = prefetch;
            data.window_tokens = window;
            const auto source = training_source(data, 42, grid, backend(), workers());
            EXPECT_EQ(test::message_of<UserError>([&] {
                          for (int i = 0; i < 10; ++i) source->next();
                      }),
                      scratch / "set/chunk_2.hdf5" +
                          ": row 20: targets of layer 1 = -inf, expected finite activations");
        }
}

// A flipped bit of the exponent leaves a value finite; trained on, it makes parameters NaN.
TEST(Sources, AValueThatNoActivationCanHaveIsNamed) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    const ProcessGrid grid(world, 1, world.size());
    const auto message = [&](float value, bool statistics) {
        if (world.rank() == 0) std::filesystem::remove_all(scratch / "set");
        world.barrier();
        write_set(scratch / "set", world);
        {
            H5File file = H5File::create(scratch / "set/chunk_1.hdf5", &world);
            for (const char* name :
                 {"layer_0/inputs", "layer_0/targets", "layer_1/inputs", "layer_1/targets"}) {
                std::vector<float> values(5 * d_model, 1.0F);
                if (name == std::string("layer_1/inputs")) values[4 * d_model + 2] = value;
                file.create_dataset(name, H5Type::float32, 5, d_model)
                    .write(world.rank() == 0 ? Shard{0, 5} : Shard{}, values.data());
            }
            file.close();
        }
        if (world.rank() == 0) {
            // Without the line that knows the statistics' checksum.
            auto metadata = nlohmann::json::parse(read_file(scratch / "set/metadata.json"));
            metadata.erase("checksums");
            write_file(scratch / "set/metadata.json", metadata.dump());
            if (!statistics) std::filesystem::remove(scratch / "set/norm_stats.json");
        }
        world.barrier();
        const auto source =
            training_source(config(scratch / "set"), 42, grid, backend(), workers());
        std::string said;
        try {
            for (int i = 0; i < 9; ++i) source->next();
        } catch (const UserError& e) {
            said = e.what();
        }
        const std::size_t at = said.find(", beyond");
        world.barrier();
        return said.substr(0, at);
    };
    const std::string where = scratch / "set/chunk_1.hdf5" + ": row 4: inputs of layer 1 = ";
    EXPECT_EQ(message(std::ldexp(0.5F, 64), true), where + "9.223372e+18 in column 2");
    EXPECT_EQ(message(std::ldexp(0.5F, 32), true), where + "2147483600 in column 2");
    EXPECT_EQ(message(std::ldexp(0.5F, 64), false), where + "9.223372e+18 in column 2");
    EXPECT_EQ(message(16000.0F, true), "");  // as large as massive activations are
    EXPECT_EQ(message(-3000.0F, false), "");
}

TEST(Sources, ABrokenChunkIsNamedOnEveryRank) {
    const Communicator world = Communicator::world();
    const test::Scratch scratch(world);
    write_set(scratch / "set", world);
    const ProcessGrid grid(world, 1, world.size());
    std::string whole;
    if (world.rank() == 0) whole = read_file(scratch / "set/chunk_2.hdf5");
    for (const Index prefetch : {0, 2}) {
        if (world.rank() == 0) write_file(scratch / "set/chunk_2.hdf5", whole);
        world.barrier();
        DataConfig data = config(scratch / "set");
        data.prefetch = prefetch;
        const auto source = training_source(data, 42, grid, backend(), workers());
        // Cut while the run is under way, and before the next one begins.
        if (world.rank() == 0) std::filesystem::resize_file(scratch / "set/chunk_2.hdf5", 1000);
        world.barrier();
        EXPECT_NE(test::message_of<UserError>([&] {
                      for (int i = 0; i < 10; ++i) source->next();
                  }).find("chunk_2.hdf5"),
                  std::string::npos);
        EXPECT_NE(test::message_of<UserError>([&] {
                      training_source(data, 42, grid, backend(), workers());
                  }).find("chunk_2.hdf5: the file is cut"),
                  std::string::npos);
    }
}

}  // namespace
}  // namespace clt
