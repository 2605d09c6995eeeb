// Checkpoints: written on one grid, read on any other, bit for bit; whole or refused.
#include "clt/train/checkpoint.hpp"

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <thread>

#include "clt/base/disk_full.hpp"
#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "support/scratch.hpp"
#include "support/test_backend.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::Scratch;

ModelConfig config_of(const std::string& activation) {
    ModelConfig config;
    config.features = 10;
    config.activation = activation;
    config.k = 3;
    return config;
}
const Shape shape{3, 4, 10};

std::vector<std::pair<int, int>> grids_of(int ranks) {
    std::vector<std::pair<int, int>> grids;
    for (int data = 1; data <= ranks; ++data)
        if (ranks % data == 0) grids.emplace_back(data, ranks / data);
    return grids;
}

// A rank's model whose every number depends on its array and its global place alone.
struct Model {
    Model(const ProcessGrid& grid, const Shape& s, const ModelConfig& config, std::uint64_t seed)
        : backend(test::make_test_backend(grid.all())),
          params(*backend, s, grid.feature_shard(s.features), config, seed),
          silence(backend->memory(), params.local_rows(), Purpose::parameters) {
        backend->zero(silence.span());
    }

    void fill() {
        std::uint32_t salt = 1;
        for (const ParamArray& array : params.arrays())
            for (const Matrix<float>* m :
                 {&array.rows.value, &array.rows.moment1, &array.rows.moment2}) {
                std::vector<float> values(static_cast<std::size_t>(m->rows * m->cols));
                for (std::size_t i = 0; i < values.size(); ++i) {
                    const auto id = static_cast<std::uint32_t>(array.first_row * m->cols) +
                                    static_cast<std::uint32_t>(i);
                    const std::uint32_t bits = (id * 2654435761U) ^ (salt * 40503U);
                    // Any sign, mantissa and finite magnitude, denormal numbers among them.
                    const std::uint32_t finite =
                        (bits & 0x7F800000U) == 0x7F800000U ? bits & ~0x40000000U : bits;
                    std::memcpy(&values[i], &finite, 4);
                }
                backend->upload(std::span<const float>(values), m->elements);
                ++salt;
            }
        std::vector<Index> counters;
        for (Index layer = 0; layer < shape.layers; ++layer)
            for (Index f = params.features().begin; f < params.features().end; ++f)
                counters.push_back(layer * 1'000'000'000'000 + f);
        backend->upload(std::span<const Index>(counters), silence.span());
    }

    // Everything, as bytes by array.
    std::map<std::string, std::string> content(bool moments = true) {
        std::map<std::string, std::string> all;
        for (const ParamArray& array : params.arrays()) {
            int kind = 0;
            for (const Matrix<float>* m :
                 {&array.rows.value, &array.rows.moment1, &array.rows.moment2}) {
                std::string bytes(static_cast<std::size_t>(m->rows * m->cols * 4), '\0');
                std::vector<float> values(bytes.size() / 4);
                backend->download(Span<const float>(m->elements), std::span<float>(values));
                std::memcpy(bytes.data(), values.data(), bytes.size());
                if (kind == 0 || moments) all[array.name + "/" + std::to_string(kind)] = bytes;
                ++kind;
            }
        }
        std::vector<Index> counters(static_cast<std::size_t>(silence.size()));
        backend->download(std::as_const(silence).span(), std::span<Index>(counters));
        if (moments)
            all["silence"].assign(reinterpret_cast<const char*>(counters.data()),
                                  counters.size() * sizeof(Index));
        return all;
    }

    std::unique_ptr<Backend> backend;
    Params params;
    Buffer<Index> silence;
};

// Statistics of the data, each number another.
Normalization statistics() {
    Normalization normalization{"mean_std", shape.layers, shape.d_model, {}};
    float next = 0.5F;
    const auto column = [&] {
        std::vector<float> values;
        for (Index i = 0; i < shape.d_model; ++i) values.push_back(next += 0.125F);
        return values;
    };
    for (Index layer = 0; layer < shape.layers; ++layer) {
        LayerStats stats;
        for (std::vector<float>* values :
             {&stats.inputs.mean, &stats.inputs.std, &stats.targets.mean, &stats.targets.std})
            *values = column();
        normalization.stats.push_back(stats);
    }
    return normalization;
}

CheckpointState state_at(Index step, const Normalization& normalization = statistics()) {
    CheckpointState state;
    state.step = step;
    state.tokens = 1000 * step;
    state.cursor = "{\"epoch\":1}";
    state.job = "[job]\nkind = \"train\"\n# θ\n";
    state.extra = "{\"best\":0.5}";
    state.data = {"0123456789abcdef", "gpt2", "mlp_input", "mlp_output", {0, 2, 5}, normalization};
    state.threshold = {0.75, 0.5};
    return state;
}

void load(const std::string& path, const ProcessGrid& grid, Model& model, bool moments = true) {
    read_checkpoint(read_checkpoint_header(path, grid.all()), *model.backend, grid, model.params,
                    moments ? model.silence.span() : Span<Index>(), moments);
}

void save(const std::string& folder, const ProcessGrid& grid, Model& model,
          const ModelConfig& config, Index step,
          const Normalization& normalization = statistics()) {
    CheckpointSnapshot snapshot;
    snapshot.take(*model.backend, grid, model.params, std::as_const(model.silence).span(), config,
                  state_at(step, normalization));
    write_checkpoint(folder, snapshot, grid.all());
}

// The step of the newest whole checkpoint.
std::optional<Index> newest_in(const std::string& folder, const Communicator& world) {
    const FoundCheckpoint found = find_newest_checkpoint(folder, world);
    if (!found.newest) return std::nullopt;
    return found.newest->state.step;
}

std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder))
        names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

// Flips a bit of an array's stored bytes, found by their content.
void flip_bit(const std::string& path, const std::string& array, Index row) {
    std::string bytes = read_file(path);
    std::string content;
    {
        const H5File file = H5File::open(path);
        const H5Dataset dataset = file.dataset(array);
        content.resize(static_cast<std::size_t>(dataset.cols() * size_of(dataset.type())));
        dataset.read({row, row + 1}, content.data());
    }
    const std::size_t at = bytes.find(content);
    ASSERT_NE(at, std::string::npos);
    ASSERT_EQ(bytes.find(content, at + 1), std::string::npos);
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    write_file(path, bytes);
}

// A model sharded over all ranks, and a folder for its checkpoints.
class CheckpointOfAllRanks : public testing::Test {
  protected:
    const Communicator world = Communicator::world();
    const Scratch scratch{world};
    const ModelConfig config = config_of("batchtopk");
    const ProcessGrid grid{world, 1, world.size()};
    Model model{grid, shape, config, 1};
};

TEST(Checkpoint, AnyGridReadsWhatAnyOtherWrote) {
    const Communicator world = Communicator::world();
    for (const char* activation : {"batchtopk", "jumprelu"}) {
        const ModelConfig config = config_of(activation);
        for (const auto& [data, feature] : grids_of(world.size())) {
            const Scratch scratch(world);
            {
                const ProcessGrid grid(world, data, feature);
                Model model(grid, shape, config, 1);
                model.fill();
                save(scratch.path(), grid, model, config, 7);
            }
            for (const auto& [other_data, other_feature] : grids_of(world.size())) {
                const ProcessGrid grid(world, other_data, other_feature);
                Model model(grid, shape, config, 2);
                Model expected(grid, shape, config, 3);
                expected.fill();
                load(scratch / "step_7.h5", grid, model);
                const CheckpointState state =
                    read_checkpoint_header(scratch / "step_7.h5", world).state;
                EXPECT_EQ(model.content(), expected.content());
                EXPECT_EQ(state.step, 7);
                EXPECT_EQ(state.cursor, state_at(7).cursor);
                EXPECT_EQ(state.job, state_at(7).job);
                EXPECT_EQ(state.extra, state_at(7).extra);
                // Values alone: moments and counters stay as they were.
                Model values(grid, shape, config, 2);
                Model untouched(grid, shape, config, 2);
                load(scratch / "step_7.h5", grid, values, /*moments=*/false);
                EXPECT_EQ(values.content(false), expected.content(false));
                EXPECT_EQ(values.content().at("decoder/bias/1"),
                          untouched.content().at("decoder/bias/1"));
            }
        }
    }
}

// One process reads what several wrote and the other way round: the same file on every grid, but
// for HDF5's own layout.
TEST(Checkpoint, TheFileHoldsGlobalArraysByName) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const ModelConfig config = config_of("jumprelu");
    const ProcessGrid grid(world, 1, world.size());
    Model model(grid, shape, config, 1);
    model.fill();
    save(scratch.path(), grid, model, config, 1);
    const H5File file = H5File::open(scratch / "step_1.h5");
    const Communicator alone = world.split(world.rank(), 0);
    const ProcessGrid whole_grid(alone, 1, 1);
    Model whole(whole_grid, shape, config, 1);
    whole.fill();
    auto expected = whole.content();
    for (const ParamArray& array : whole.params.arrays()) {
        int kind = 0;
        for (const char* group : {"value/", "moment1/", "moment2/"}) {
            const H5Dataset data = file.dataset(group + array.name);
            EXPECT_EQ(data.rows(), array.global_rows);
            std::string bytes(static_cast<std::size_t>(data.rows() * data.cols() * 4), '\0');
            data.read({0, data.rows()}, bytes.data());
            EXPECT_EQ(bytes, expected.at(array.name + "/" + std::to_string(kind++))) << array.name;
        }
    }
    load(scratch / "step_1.h5", whole_grid, whole);
    EXPECT_EQ(whole.content(), expected);
}

// As an asynchronous save does: training overwrites its arrays while another thread writes.
TEST_F(CheckpointOfAllRanks, AnotherThreadWritesWhatWasTaken) {
    model.fill();
    const auto expected = model.content();
    const Communicator own = world.duplicate();
    CheckpointSnapshot snapshot;
    const auto take = [&](Index step) {
        snapshot.take(*model.backend, grid, model.params, std::as_const(model.silence).span(),
                      config, state_at(step));
    };
    take(1);
    const std::byte* memory = snapshot.data(snapshot.arrays().front());
    const Index bytes = snapshot.bytes();
    std::thread writer([&] { write_checkpoint(scratch.path(), snapshot, own); });
    for (const ParamArray& array : model.params.arrays())
        for (const Matrix<float>* m : {&array.rows.value, &array.rows.moment1, &array.rows.moment2})
            model.backend->zero(m->elements);
    writer.join();
    Model again(grid, shape, config, 2);
    load(scratch / "step_1.h5", grid, again);
    EXPECT_EQ(again.content(), expected);
    take(2);
    EXPECT_EQ(snapshot.data(snapshot.arrays().front()), memory);  // no new memory a save
    EXPECT_EQ(snapshot.bytes(), bytes);
}

TEST(Checkpoint, FewerFeaturesThanShards) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    ModelConfig config = config_of("topk");
    const Shape tiny{2, 3, 2};
    const ProcessGrid grid(world, 1, world.size());
    Model model(grid, tiny, config, 5);
    const auto content = model.content();
    save(scratch.path(), grid, model, config, 0, {"none", tiny.layers, tiny.d_model, {}});
    Model again(grid, tiny, config, 6);
    load(scratch / "step_0.h5", grid, again);
    EXPECT_EQ(again.content(), content);
}

TEST_F(CheckpointOfAllRanks, TellsOfItselfAndRefusesAnotherModel) {
    save(scratch.path(), grid, model, config, 12);
    const std::string path = scratch / "step_12.h5";
    const CheckpointHeader header = read_checkpoint_header(path, world);
    EXPECT_EQ(header.path, path);
    EXPECT_EQ(header.format_version, 2);
    EXPECT_TRUE(header.shape == shape);
    EXPECT_EQ(header.model.activation, "batchtopk");
    EXPECT_EQ(header.model.k, 3);
    EXPECT_EQ(header.state.step, 12);
    EXPECT_EQ(header.state.tokens, 12000);
    EXPECT_EQ(header.state.job, state_at(12).job);
    EXPECT_EQ(header.state.threshold.last, 0.75);
    EXPECT_EQ(header.state.threshold.running, 0.5);
    const TrainingData& data = header.state.data;
    EXPECT_EQ(data.fingerprint, "0123456789abcdef");
    EXPECT_EQ(data.language_model, "gpt2");
    EXPECT_EQ(data.input_tap, "mlp_input");
    EXPECT_EQ(data.layer_ids, (std::vector<Index>{0, 2, 5}));
    EXPECT_EQ(data.normalization.method, "mean_std");
    ASSERT_EQ(data.normalization.stats.size(), 3U);
    for (std::size_t layer = 0; layer < 3; ++layer) {
        const LayerStats& is = data.normalization.stats[layer];
        const LayerStats should_be = statistics().stats[layer];
        EXPECT_EQ(is.inputs.mean, should_be.inputs.mean);
        EXPECT_EQ(is.inputs.std, should_be.inputs.std);
        EXPECT_EQ(is.targets.mean, should_be.targets.mean);
        EXPECT_EQ(is.targets.std, should_be.targets.std);
    }
    EXPECT_TRUE(verify_checkpoint(header, world).empty());

    const auto refusal = [&](const Shape& other, const ModelConfig& other_config) {
        Model reader(grid, other, other_config, 1);
        return message_of<UserError>([&] { load(path, grid, reader); });
    };
    EXPECT_EQ(
        refusal({3, 4, 11}, config),
        path +
            ": a checkpoint of a model with 3 layers, d_model 4 and 10 features a layer; this "
            "job's model has 3 layers, d_model 4 and 11 features");
    EXPECT_EQ(refusal(shape, config_of("jumprelu")),
              path +
                  ": a checkpoint of a batchtopk model, which has no thresholds; this job's "
                  "model has some (jumprelu)");
    const std::string foreign = scratch / "foreign.h5";
    H5File::create(foreign, &world).close();
    EXPECT_EQ(message_of<UserError>([&] { read_checkpoint_header(foreign, world); }),
              foreign + ": an HDF5 file, but no checkpoint of clt");
}

// Cut at any byte: refused by name, and the one before is found.
TEST_F(CheckpointOfAllRanks, CutAnywhereIsRefusedAndTheOneBeforeIsUsed) {
    model.fill();
    EXPECT_FALSE(newest_in(scratch.path(), world).has_value());
    save(scratch.path(), grid, model, config, 9);
    save(scratch.path(), grid, model, config, 10);
    EXPECT_EQ(newest_in(scratch.path(), world), 10);
    const std::string path = scratch / "step_10.h5";
    std::string whole;
    if (world.rank() == 0) whole = read_file(path);
    const Index length = world.broadcast(static_cast<Index>(whole.size()));
    std::vector<Index> cuts = {0, 1, 7, 8, 40, 47, 48, 49, length - 2, length - 1};
    for (int i = 1; i < 40; ++i) cuts.push_back(length * i / 40 + i);
    for (const Index keep : cuts) {
        if (world.rank() == 0) write_file(path, whole.substr(0, static_cast<std::size_t>(keep)));
        world.barrier();
        EXPECT_EQ(message_of<UserError>([&] { read_checkpoint_header(path, world); }).find(path),
                  0U)
            << keep;
        EXPECT_EQ(newest_in(scratch.path(), world), 9) << keep;
    }
}

// A torn write keeps the length: a block of zeros or a flipped bit anywhere. HDF5 checks its own
// metadata, our sums the rest. Bytes between objects belong to nobody.
TEST_F(CheckpointOfAllRanks, DamageInTheArraysOrTheTextsIsFound) {
    const auto original = model.content();
    save(scratch.path(), grid, model, config, 1);
    const std::string path = scratch / "step_1.h5";
    std::string whole;
    if (world.rank() == 0) whole = read_file(path);
    const Index length = world.broadcast(static_cast<Index>(whole.size()));
    Index refused = 0;
    const int tries = 60;
    for (int i = 0; i < tries; ++i) {
        if (world.rank() == 0) {
            std::string torn = whole;
            const auto at = static_cast<std::size_t>(length * i / tries + i % 7);
            if (i % 2 == 0)
                torn[at] = static_cast<char>(torn[at] ^ (1 << (i % 8)));
            else
                torn.replace(at, std::min<std::size_t>(512, torn.size() - at),
                             std::min<std::size_t>(512, torn.size() - at), '\0');
            write_file(path, torn);
        }
        world.barrier();
        Model reader(grid, shape, config, 2);
        try {
            load(path, grid, reader);
            EXPECT_EQ(reader.content(), original) << "damage " << i << " went unnoticed";
            EXPECT_EQ(read_checkpoint_header(path, world).state.job, state_at(1).job);
        } catch (const UserError& e) {
            EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
            ++refused;
        }
        world.barrier();
    }
    EXPECT_GT(refused, tries / 2);
}

// One of 159 of 240 trials of fault 12: the newest is damaged in an array.
TEST_F(CheckpointOfAllRanks, DamageInAnArrayIsNamedByItsRowsAndTheOneBeforeIsUsed) {
    model.fill();
    save(scratch.path(), grid, model, config, 1);
    save(scratch.path(), grid, model, config, 2);
    const std::string path = scratch / "step_2.h5";
    if (world.rank() == 0) flip_bit(path, "moment1/decoder/layer_1/weight", 7);
    world.barrier();
    const CheckpointHeader header = read_checkpoint_header(path, world);
    const std::string what =
        path + ": array moment1/decoder/layer_1/weight, rows 0 to 9, does not match its checksum";
    EXPECT_EQ(verify_checkpoint(header, world), std::vector<std::string>{what});
    EXPECT_EQ(message_of<UserError>([&] { load(path, grid, model); }), what);
    const FoundCheckpoint found = find_newest_checkpoint(scratch.path(), world);
    ASSERT_TRUE(found.newest.has_value());
    EXPECT_EQ(found.newest->state.step, 1);
    EXPECT_EQ(found.passed_over, std::vector<std::string>{"step_2.h5"});
}

// Blocks are whole rows of 4 MiB, whatever the grid: 3 of them here.
TEST(Checkpoint, ABlockIsNamedByItsRows) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const Shape wide{1, 512, 5000};
    ModelConfig config = config_of("topk");
    config.features = wide.features;
    const ProcessGrid grid(world, 1, world.size());
    Model model(grid, wide, config, 1);
    CheckpointSnapshot snapshot;
    CheckpointState state = state_at(3);
    state.data.normalization = {"none", wide.layers, wide.d_model, {}};
    snapshot.take(*model.backend, grid, model.params, std::as_const(model.silence).span(), config,
                  state);
    write_checkpoint(scratch.path(), snapshot, world);
    const std::string path = scratch / "step_3.h5";
    const Index written = static_cast<Index>(fs::file_size(path));
    EXPECT_LE(written, snapshot.file_bytes());
    EXPECT_GT(written, snapshot.file_bytes() - snapshot.file_bytes() / 4);
    world.barrier();
    if (world.rank() == 0) flip_bit(path, "value/encoder/layer_0/weight", 4100);
    world.barrier();
    EXPECT_EQ(
        verify_checkpoint(read_checkpoint_header(path, world), world),
        std::vector<std::string>{path + ": array value/encoder/layer_0/weight, rows 4096 to 4999, "
                                        "does not match its checksum"});
}

TEST_F(CheckpointOfAllRanks, ANumberThatIsNotFiniteIsNotSavedAndNothingIsPruned) {
    save(scratch.path(), grid, model, config, 1);
    const ParamRows rows = model.params.decoder(1);
    const Shard own = model.params.features();
    for (const Index feature : {Index{9}, Index{4}})
        if (feature >= own.begin && feature < own.end) {
            const std::vector<float> bad = {std::numeric_limits<float>::quiet_NaN()};
            model.backend->upload(std::span<const float>(bad),
                                  rows.moment2.elements.subspan((feature - own.begin) * 8 + 3, 1));
        }
    EXPECT_EQ(message_of<UserError>([&] { save(scratch.path(), grid, model, config, 2); }),
              scratch /
                  "step_2.h5: not saved: array moment2/decoder/layer_1/weight is NaN or infinite "
                  "in row 4, column 3; older checkpoints stay");
    world.barrier();
    EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"step_1.h5"});
}

// Of a reason that no older checkpoint mends: the run must not go on from one unasked.
TEST_F(CheckpointOfAllRanks, WhatIsNotDamageIsAnError) {
    save(scratch.path(), grid, model, config, 1);
    if (world.rank() == 0) fs::create_symlink("step_2.h5", scratch / "step_2.h5");
    world.barrier();
    const std::string message =
        message_of<UserError>([&] { find_newest_checkpoint(scratch.path(), world); });
    EXPECT_EQ(message, scratch /
                           "step_2.h5: cannot be read: Too many levels of symbolic links (to "
                           "go on from an older checkpoint, move this one away)");
}

TEST_F(CheckpointOfAllRanks, RenamedAndForeignFilesArePassedOver) {
    save(scratch.path(), grid, model, config, 1);
    if (world.rank() == 0) {
        fs::copy_file(scratch / "step_1.h5", scratch / "step_5.h5");
        write_file(scratch / "step_6.h5", "not HDF5");
    }
    H5File::create(scratch / "step_7.h5", &world).close();
    const FoundCheckpoint found = find_newest_checkpoint(scratch.path(), world);
    EXPECT_EQ(found.passed_over, (std::vector<std::string>{"step_7.h5", "step_6.h5", "step_5.h5"}));
    ASSERT_TRUE(found.newest.has_value());
    EXPECT_EQ(found.newest->state.step, 1);
}

TEST(Checkpoint, Names) {
    EXPECT_EQ(CheckpointName{120}.text(), "step_120.h5");
    EXPECT_EQ(CheckpointName::parse("step_120.h5")->step, 120);
    for (const char* name : {"step_.h5", "step_x.h5", "step_07.h5", "step_-1.h5", "step_1.h5.tmp",
                             "step_99999999999999999999.h5", "other.h5", ""})
        EXPECT_FALSE(CheckpointName::parse(name).has_value()) << name;
}

// Only verified checkpoints count as kept, and only they and whole older ones go.
TEST_F(CheckpointOfAllRanks, PruneKeepsTheNewestVerifiedAndTheBest) {
    const auto make = [&](Index step) {
        CheckpointSnapshot snapshot;
        snapshot.take(*model.backend, grid, model.params, std::as_const(model.silence).span(),
                      config, state_at(step));
        return write_checkpoint(scratch.path(), snapshot, world);
    };
    for (const Index step : {1, 2, 3}) make(step);  // of an earlier leg
    const CheckpointHeader resumed = read_checkpoint_header(scratch / "step_3.h5", world);
    CheckpointKeeper keeper(scratch.path(), &resumed);
    const auto prune = [&](Index keep, Index best) {
        if (world.rank() == 0) keeper.prune(keep, best);
        world.barrier();
        const auto names = names_in(scratch.path());
        world.barrier();
        return names;
    };
    const auto names = [](std::initializer_list<const char*> list) {
        return std::vector<std::string>(list.begin(), list.end());
    };
    if (world.rank() == 0) {
        fs::copy_file(scratch / "step_2.h5", scratch / "step_0.h5");  // renamed
        for (const char* name : {"notes.txt", "step_x.h5", "step_8.h5.tmp", "other.h5.tmp"})
            write_file(scratch / name, "x");
    }
    world.barrier();
    keeper.written(make(4));
    // Two of three are verified: nothing goes but what a crash left.
    EXPECT_EQ(prune(3, 0), names({"notes.txt", "other.h5.tmp", "step_0.h5", "step_1.h5",
                                  "step_2.h5", "step_3.h5", "step_4.h5", "step_x.h5"}));
    keeper.written(make(5));
    EXPECT_EQ(prune(3, 1), names({"notes.txt", "other.h5.tmp", "step_0.h5", "step_1.h5",
                                  "step_3.h5", "step_4.h5", "step_5.h5", "step_x.h5"}));
    // A newer one that was damaged since does not count, and is left for people to look at.
    if (world.rank() == 0) write_file(scratch / "step_5.h5", "damaged");
    world.barrier();
    EXPECT_EQ(prune(2, 0), names({"notes.txt", "other.h5.tmp", "step_0.h5", "step_3.h5",
                                  "step_4.h5", "step_5.h5", "step_x.h5"}));
    keeper.written(make(6));
    EXPECT_EQ(prune(2, 0), names({"notes.txt", "other.h5.tmp", "step_0.h5", "step_4.h5",
                                  "step_5.h5", "step_6.h5", "step_x.h5"}));
}

TEST_F(CheckpointOfAllRanks, AFolderThatIsNotThereIsNamed) {
    EXPECT_EQ(message_of<UserError>([&] { save(scratch / "no", grid, model, config, 1); }),
              scratch / "no/step_1.h5.tmp: cannot be created: No such file or directory");
    EXPECT_NE(message_of<UserError>([&] {
                  find_newest_checkpoint(scratch / "no", world);
              }).find("cannot be read"),
              std::string::npos);
}

// A real full disk: a small file system in memory.
TEST(Checkpoint, AFullDiskLeavesTheOlderCheckpointAndNothingElse) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string disk = scratch / "disk";
    bool mounted = false;
    if (world.rank() == 0) {
        fs::create_directory(disk);
        mounted = ::mount("clt-test", disk.c_str(), "tmpfs", 0, "size=4m") == 0;
    }
    if (!world.broadcast(mounted)) GTEST_SKIP() << "mount(2) is not permitted here";
    {
        const ModelConfig config = config_of("batchtopk");
        const ProcessGrid grid(world, 1, world.size());
        Model model(grid, shape, config, 1);
        model.fill();
        save(disk, grid, model, config, 1);
        const Shape large_shape{3, 64, 2000};
        ModelConfig large_config = config;
        large_config.features = 2000;
        Model large(grid, large_shape, large_config, 1);
        const std::string message =
            message_of<DiskFullError>([&] { save(disk, grid, large, large_config, 2); });
        EXPECT_EQ(message.find(disk + ": no room for a checkpoint: "), 0U) << message;
        EXPECT_NE(message.find(" are missing"), std::string::npos) << message;
        world.barrier();
        EXPECT_FALSE(fs::exists(disk + "/step_2.h5.tmp"));
        EXPECT_FALSE(fs::exists(disk + "/step_2.h5"));
        EXPECT_EQ(newest_in(disk, world), 1);
        save(disk, grid, model, config, 3);  // and it can go on
    }
    world.barrier();
    if (world.rank() == 0) {
        EXPECT_EQ(::umount2(disk.c_str(), MNT_DETACH), 0);
    }
}

}  // namespace
}  // namespace clt
