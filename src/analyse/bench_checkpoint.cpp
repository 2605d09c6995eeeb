#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "clt/analyse/bench.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/io/file.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

constexpr int repetitions = 3;
constexpr Index piece_bytes = Index{8} << 20;

// What the disk takes from one writer who does nothing else. Rank 0.
double plain_write(const std::string& path, const std::vector<char>& piece, Index bytes) {
    const Stopwatch watch;
    {
        std::ofstream file(path, std::ios::binary | std::ios::trunc);
        for (Index left = bytes; left > 0 && file; left -= piece_bytes)
            file.write(piece.data(), static_cast<std::streamsize>(std::min(left, piece_bytes)));
        file.close();
        if (!file) user_error("{}: cannot be written", path);
    }
    sync_file(path);
    return watch.seconds();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

std::string bench_checkpoint(const BenchOptions& options, const std::string& folder,
                             Backend& backend, const Communicator& world) {
    const ProcessGrid grid(world, options.grid);
    const Shape shape{options.layers, options.d_model, options.features};
    ModelConfig model;
    model.features = options.features;
    model.activation = options.activation;
    model.k = options.k;
    Params params(backend, shape, grid.feature_shard(shape.features), model, /*seed=*/1);
    Buffer<Index> silence(backend.memory(), params.local_rows(), Purpose::parameters);
    backend.zero(silence.span());
    CheckpointSnapshot snapshot;
    CheckpointState state;
    state.extra = "{}";

    std::vector<double> takes;
    std::vector<double> writes;
    std::vector<double> plains;
    std::vector<double> ratios;
    Index bytes = 0;
    const std::string plain = (fs::path(folder) / "plain").string();
    // Random bits: a file system may compress.
    std::vector<char> piece(static_cast<std::size_t>(piece_bytes));
    std::uint64_t bits = 1;
    for (char& byte : piece)
        byte = static_cast<char>((bits = bits * 6364136223846793005U + 1442695040888963407U) >> 56);
    for (int i = 0; i < repetitions; ++i) {
        state.step = i + 1;
        world.barrier();
        const Stopwatch take;
        snapshot.take(backend, grid, params, std::as_const(silence).span(), model, state);
        takes.push_back(world.all_reduce_max(take.seconds()));
        const Stopwatch write;
        bytes = write_checkpoint(folder, snapshot, world).bytes;
        writes.push_back(world.all_reduce_max(write.seconds()));
        world.together([&] {
            if (world.rank() != 0) return;
            const std::string written =
                (fs::path(folder) / CheckpointName{state.step}.text()).string();
            std::error_code ignored;
            fs::remove(written, ignored);
            plains.push_back(plain_write(plain, piece, bytes));
            fs::remove(plain, ignored);
        });
        plains.resize(writes.size());
        plains.back() = world.broadcast(plains.back());
        ratios.push_back(plains.back() / writes.back());
    }
    return nlohmann::ordered_json{
        {"bytes", bytes},
        {"ranks", world.size()},
        {"take_s", median(takes)},
        {"write_s", median(writes)},
        {"plain_s", median(plains)},
        {"write_gb_per_s", static_cast<double>(bytes) / median(writes) / 1e9},
        {"plain_gb_per_s", static_cast<double>(bytes) / median(plains) / 1e9},
        {"ratio_to_plain", median(ratios)}}
        .dump();
}

}  // namespace clt
