// Checkpoints: written on one grid, read on any other, bit for bit; whole or refused.
#include "clt/train/checkpoint.hpp"

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <thread>

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
                    std::memcpy(&values[i], &bits, 4);  // NaN payloads and infinities included
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

CheckpointState state_at(Index step) {
    return {step, "{\"epoch\":1}", "[job]\nkind = \"train\"\n# θ\n", "{\"best\":0.5}"};
}

void save(const std::string& folder, const ProcessGrid& grid, Model& model,
          const ModelConfig& config, Index step) {
    CheckpointSnapshot snapshot;
    snapshot.take(*model.backend, grid, model.params, std::as_const(model.silence).span(), config,
                  state_at(step));
    write_checkpoint(folder, snapshot, grid.all());
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
                const CheckpointState state =
                    read_checkpoint(scratch / "step_7.h5", *model.backend, grid, model.params,
                                    model.silence.span(), true);
                EXPECT_EQ(model.content(), expected.content());
                EXPECT_EQ(state.step, 7);
                EXPECT_EQ(state.cursor, state_at(7).cursor);
                EXPECT_EQ(state.job, state_at(7).job);
                EXPECT_EQ(state.extra, state_at(7).extra);
                // Values alone: moments and counters stay as they were.
                Model values(grid, shape, config, 2);
                Model untouched(grid, shape, config, 2);
                read_checkpoint(scratch / "step_7.h5", *values.backend, grid, values.params, {},
                                false);
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
    read_checkpoint(scratch / "step_1.h5", *whole.backend, whole_grid, whole.params,
                    whole.silence.span(), true);
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
    read_checkpoint(scratch / "step_1.h5", *again.backend, grid, again.params, again.silence.span(),
                    true);
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
    save(scratch.path(), grid, model, config, 0);
    Model again(grid, tiny, config, 6);
    read_checkpoint(scratch / "step_0.h5", *again.backend, grid, again.params, again.silence.span(),
                    true);
    EXPECT_EQ(again.content(), content);
}

TEST_F(CheckpointOfAllRanks, TellsOfItselfAndRefusesAnotherModel) {
    save(scratch.path(), grid, model, config, 12);
    const std::string path = scratch / "step_12.h5";
    const CheckpointInfo info = inspect_checkpoint(path, world);
    EXPECT_EQ(info.path, path);
    EXPECT_EQ(info.step, 12);
    EXPECT_TRUE(info.shape == shape);
    EXPECT_EQ(info.activation, "batchtopk");
    EXPECT_EQ(info.model.k, 3);
    EXPECT_EQ(info.state.job, state_at(12).job);
    EXPECT_TRUE(verify_checkpoint(path, world).empty());

    const auto refusal = [&](const Shape& other, const ModelConfig& other_config) {
        Model reader(grid, other, other_config, 1);
        return message_of<UserError>([&] {
            read_checkpoint(path, *reader.backend, grid, reader.params, reader.silence.span(),
                            true);
        });
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
    EXPECT_EQ(message_of<UserError>([&] { inspect_checkpoint(foreign, world); }),
              foreign + ": an HDF5 file, but no checkpoint of clt");
}

// Cut at any byte: refused by name, and the one before is found.
TEST_F(CheckpointOfAllRanks, CutAnywhereIsRefusedAndTheOneBeforeIsUsed) {
    model.fill();
    EXPECT_FALSE(find_newest_checkpoint(scratch.path(), world).has_value());
    save(scratch.path(), grid, model, config, 9);
    save(scratch.path(), grid, model, config, 10);
    EXPECT_EQ(find_newest_checkpoint(scratch.path(), world)->step, 10);
    const std::string path = scratch / "step_10.h5";
    std::string whole;
    if (world.rank() == 0) whole = read_file(path);
    const Index length = world.broadcast(static_cast<Index>(whole.size()));
    std::vector<Index> cuts = {0, 1, 7, 8, 40, 47, 48, 49, length - 2, length - 1};
    for (int i = 1; i < 40; ++i) cuts.push_back(length * i / 40 + i);
    for (const Index keep : cuts) {
        if (world.rank() == 0) write_file(path, whole.substr(0, static_cast<std::size_t>(keep)));
        world.barrier();
        EXPECT_EQ(message_of<UserError>([&] { inspect_checkpoint(path, world); }).find(path), 0U)
            << keep;
        const auto newest = find_newest_checkpoint(scratch.path(), world);
        ASSERT_TRUE(newest.has_value());
        EXPECT_EQ(newest->step, 9) << keep;
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
            const CheckpointState state = read_checkpoint(
                path, *reader.backend, grid, reader.params, reader.silence.span(), true);
            EXPECT_EQ(reader.content(), original) << "damage " << i << " went unnoticed";
            EXPECT_EQ(state.job, state_at(1).job);
        } catch (const UserError& e) {
            EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
            ++refused;
        }
        world.barrier();
    }
    EXPECT_GT(refused, tries / 2);
}

TEST(Checkpoint, VerifyNamesTheArrayAndTheFirstBadNumber) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const ModelConfig config = config_of("relu");
    const ProcessGrid grid(world, 1, world.size());
    Model model(grid, shape, config, 1);
    const ParamRows rows = model.params.decoder(1);
    const Shard own = model.params.features();
    for (const Index feature : {Index{9}, Index{4}})
        if (feature >= own.begin && feature < own.end) {
            const std::vector<float> bad = {std::numeric_limits<float>::quiet_NaN()};
            model.backend->upload(std::span<const float>(bad),
                                  rows.value.elements.subspan((feature - own.begin) * 8 + 3, 1));
        }
    save(scratch.path(), grid, model, config, 1);
    EXPECT_EQ(verify_checkpoint(scratch / "step_1.h5", world),
              std::vector<std::string>{
                  scratch / "step_1.h5: array value/decoder/layer_1/weight is NaN or infinite in "
                            "row 4, column 3"});
}

TEST(Checkpoint, PruneKeepsTheNewestAndTheBestAndRemovesLeftOvers) {
    const Communicator world = Communicator::world();
    if (world.rank() != 0) return;
    const Scratch scratch;
    for (const char* name : {"step_1.h5", "step_2.h5", "step_10.h5", "step_9.h5", "step_11.h5.tmp",
                             "notes.txt", "step_x.h5", "other.h5"})
        write_file(scratch / name, "x");
    prune_checkpoints(scratch.path(), 2, "step_1.h5");
    std::vector<std::string> left;
    for (const auto& entry : fs::directory_iterator(scratch.path()))
        left.push_back(entry.path().filename().string());
    std::sort(left.begin(), left.end());
    EXPECT_EQ(left, (std::vector<std::string>{"notes.txt", "other.h5", "step_1.h5", "step_10.h5",
                                              "step_9.h5", "step_x.h5"}));
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
            message_of<UserError>([&] { save(disk, grid, large, large_config, 2); });
        EXPECT_NE(message.find("step_2.h5.tmp"), std::string::npos) << message;
        EXPECT_NE(message.find("No space left on device"), std::string::npos) << message;
        world.barrier();
        EXPECT_FALSE(fs::exists(disk + "/step_2.h5.tmp"));
        EXPECT_FALSE(fs::exists(disk + "/step_2.h5"));
        EXPECT_EQ(find_newest_checkpoint(disk, world)->step, 1);
        EXPECT_TRUE(verify_checkpoint(disk + "/step_1.h5", world).size() > 0U);  // NaN patterns
        save(disk, grid, model, config, 3);                                      // and it can go on
    }
    world.barrier();
    if (world.rank() == 0) {
        EXPECT_EQ(::umount2(disk.c_str(), MNT_DETACH), 0);
    }
}

}  // namespace
}  // namespace clt
