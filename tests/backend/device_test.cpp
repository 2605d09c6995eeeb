// The CUDA backend without its kernels, on the emulator: memory, copies, time, collectives.
#include <gtest/gtest.h>

#include <numeric>

#include "backend/cuda/collectives.hpp"
#include "backend/cuda/cuda_backend.hpp"
#include "backend/cuda/fill_rows.hpp"
#include "clt/data/sources.hpp"
#include "clt/data/writer.hpp"
#include "clt/memory/raw.hpp"
#include "support/cuda_on_cpu/emulator.hpp"
#include "support/cuda_on_cpu/runtime.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using cuda::DeviceMemory;

/// The emulator's memory holds `bytes` more until the end of the scope.
struct MemoryLimit {
    explicit MemoryLimit(std::size_t bytes) {
        emu::set_memory_limit(emu::bytes_allocated() + bytes);
    }
    MemoryLimit(const MemoryLimit&) = delete;
    MemoryLimit& operator=(const MemoryLimit&) = delete;
    ~MemoryLimit() { emu::set_memory_limit(before); }
    std::size_t before = emu::memory_limit();
};

TEST(DeviceMemory, FreedBlocksAreHandedOutAgain) {
    DeviceMemory memory("device 0", /*keep=*/true);
    const std::size_t before = emu::bytes_allocated();
    const auto address = [&](Index bytes) {
        Buffer<std::byte> buffer(memory, bytes, Purpose::batch);
        return raw(buffer.span());
    };
    std::byte* large = address(9000);
    EXPECT_EQ(memory.kept_bytes(), 9000U);
    EXPECT_EQ(address(9000), large);
    EXPECT_EQ(address(8000), large);  // 1/8 more is near enough
    EXPECT_EQ(memory.kept_bytes(), 9000U);
    EXPECT_NE(address(7999), large);
    EXPECT_NE(address(9001), large);
    EXPECT_EQ(memory.kept_bytes(), 9000U + 7999 + 9001);
    EXPECT_EQ(memory.bytes_in_use(), 0U);
    EXPECT_EQ(emu::bytes_allocated(), before + memory.kept_bytes());
}

TEST(DeviceMemory, EndsWithoutALeakAndKeepsNothingWhenToldSo) {
    const std::size_t before = emu::bytes_allocated();
    {
        DeviceMemory keeping("device 0", true);
        DeviceMemory plain("device 0", false);
        Buffer<float>(keeping, 100, Purpose::batch);
        Buffer<float>(plain, 100, Purpose::batch);
        EXPECT_EQ(plain.kept_bytes(), 0U);
        EXPECT_EQ(emu::bytes_allocated(), before + 400);
    }
    EXPECT_EQ(emu::bytes_allocated(), before);
}

TEST(DeviceMemory, FreeBlocksGoBackBeforeAnAllocationFails) {
    DeviceMemory memory("device 0", true);
    const MemoryLimit limit(1000);
    Buffer<std::byte>(memory, 600, Purpose::batch);
    EXPECT_EQ(memory.kept_bytes(), 600U);
    const Buffer<std::byte> fits(memory, 900, Purpose::batch);
    EXPECT_EQ(memory.kept_bytes(), 0U);
}

TEST(DeviceMemory, OutOfMemorySaysWhatWhereAndWhatToChange) {
    CudaBackend backend(0, /*ranks_on_device=*/1, cuda::Precision::float32);
    const MemoryLimit limit(3'000'000);
    const Buffer<std::byte> moments(backend.memory(), 2'000'000, Purpose::moments);
    const std::string message = test::message_of<UserError>(
        [&] { Buffer<float>(backend.memory(), 500'000, Purpose::candidates); });
    EXPECT_EQ(message, fmt::format("rank {}: out of memory on device 0 (emulator) with {:.1f} MB, "
                                   "1.0 MB of it free: 2.0 MB for candidates (in use: optimiser "
                                   "moments 2.0 MB); use more ranks, fewer features "
                                   "(model.features) or a smaller batch (data.batch_tokens)",
                                   process_rank(), static_cast<double>(emu::memory_limit()) / 1e6));
}

TEST(DeviceMemory, KnowsTheFirstUseOfAKeptBlock) {
    DeviceMemory memory("device 0", true);
    Buffer<float> fresh(memory, 100, Purpose::batch);
    EXPECT_FALSE(memory.first_use_of_kept_block(raw(fresh.span())));
    fresh = {};
    Buffer<float> again(memory, 100, Purpose::batch);
    EXPECT_TRUE(memory.first_use_of_kept_block(raw(again.span()) + 50));
    EXPECT_FALSE(memory.first_use_of_kept_block(raw(again.span())));
}

std::vector<float> numbers(Index n, float first = 0) {
    std::vector<float> values(static_cast<std::size_t>(n));
    std::iota(values.begin(), values.end(), first);
    return values;
}

class CudaTest : public testing::Test {
  protected:
    Buffer<float> on_device(const std::vector<float>& values) {
        Buffer<float> buffer(backend_.memory(), static_cast<Index>(values.size()), Purpose::batch);
        backend_.upload(std::span<const float>(values), buffer.span());
        return buffer;
    }
    template <class T>
    std::vector<T> on_host(Span<const T> span) {
        std::vector<T> values(static_cast<std::size_t>(span.size()));
        backend_.download(span, std::span<T>(values));
        return values;
    }

    Communicator world_ = Communicator::world();
    CudaBackend backend_{0, /*ranks_on_device=*/2, cuda::Precision::float32};
};

TEST_F(CudaTest, CopiesOfEverySizeArrive) {
    // Below and above a page-locked upload (64 KiB), one and several pieces of a download (8 MiB).
    for (const Index n : {0, 1, 16384, 16385, 2 << 20, (2 << 20) + 1, (6 << 20) + 3}) {
        const std::vector<float> values = numbers(n);
        Buffer<float> buffer = on_device(values);
        EXPECT_EQ(on_host(Span<const float>(buffer.span())), values) << n;
        Buffer<float> copy(backend_.memory(), n, Purpose::batch);
        backend_.upload_ahead(std::span<const float>(values), copy.span());
        EXPECT_EQ(on_host(Span<const float>(copy.span())), values) << n;
        backend_.zero(buffer.span());
        backend_.copy(Span<const float>(buffer.span()), copy.span());
        EXPECT_EQ(on_host(Span<const float>(copy.span())), std::vector<float>(values.size(), 0));
    }
}

TEST_F(CudaTest, SmallUploadsDoNotMixAndLetTheHostGoOn) {
    std::vector<Buffer<float>> buffers;
    const cuda::Device device(0);
    for (int i = 0; i < 5; ++i) {
        std::vector<float> values = numbers(100, static_cast<float>(1000 * i));
        buffers.push_back(on_device(values));
        values.assign(values.size(), -1);  // the host memory may be reused at once
    }
    for (int i = 0; i < 5; ++i)
        EXPECT_EQ(on_host(Span<const float>(buffers[static_cast<std::size_t>(i)].span())),
                  numbers(100, static_cast<float>(1000 * i)));
}

TEST_F(CudaTest, ADownloadWaitsOncePerPiece) {
    Buffer<float> sums = on_device(numbers(64));
    const int before = test::waits();
    on_host(Span<const float>(sums.span()));
    EXPECT_EQ(test::waits(), before + 1);
}

TEST_F(CudaTest, PinnedMemoryIsLockedWhileTheResultLives) {
    const std::vector<float> values = numbers(1000);
    {
        const auto pin = backend_.pin(values.data(), 4000);
        EXPECT_NE(pin, nullptr);
        EXPECT_TRUE(test::is_page_locked(values.data(), 4000));
        EXPECT_EQ(backend_.pin(values.data(), 4000), nullptr);  // refused: slow, but no error
    }
    EXPECT_FALSE(test::is_page_locked(values.data(), 4000));
    EXPECT_EQ(backend_.pin(values.data(), 0), nullptr);
}

TEST_F(CudaTest, BatchesOfADataSetLieInPinnedMemory) {
    const test::Scratch scratch(world_);
    const Index rows = 37;
    DatasetWriter writer({.folder = scratch / "set",
                          .model_name = "none",
                          .dataset = "made up",
                          .split = "train",
                          .layers = 2,
                          .d_model = 3,
                          .chunk_tokens = rows,
                          .seed = 3},
                         world_);
    writer.write_chunk(numbers(shard_of(rows, world_.rank(), world_.size()).size() * 12), "");
    writer.finish();
    Workers workers;
    DataConfig config;
    config.path = scratch / "set";
    config.normalization = "none";
    config.prefetch = 2;
    const auto locked = [](std::span<const float> part) {
        return part.empty() || test::is_page_locked(part.data(), part.size_bytes());
    };
    for (int data = 1; data <= world_.size(); ++data) {
        if (world_.size() % data != 0) continue;
        const ProcessGrid grid(world_, data, world_.size() / data);
        const Normalization normalization =
            normalization_of(ActivationDataset(config.path, world_), config.normalization);
        for (config.batch_tokens = 1; config.batch_tokens < 9; ++config.batch_tokens) {
            const auto training =
                make_training_source(config, normalization, 42, grid, backend_, workers);
            for (int i = 0; i < 12; ++i) {
                const HostBatch batch = training->next();
                EXPECT_TRUE(locked(batch.inputs) && locked(batch.targets));
                if (i == 5) training->seek(training->cursor());
            }
            const auto pass = make_evaluation_source(config, normalization, 0, /*whole=*/true, grid,
                                                     backend_, workers);
            for (HostBatch batch = pass->next(); batch.tokens > 0; batch = pass->next())
                EXPECT_TRUE(locked(batch.inputs) && locked(batch.targets));
        }
    }
    EXPECT_EQ(test::page_locked_ranges(), 0);
}

TEST_F(CudaTest, TheStageClockTellsEveryStageInOrder) {
    const auto clock = backend_.stage_clock();
    EXPECT_TRUE(clock->take().empty());
    for (int step = 0; step < 3; ++step) {
        clock->start();
        clock->mark("encode");
        clock->mark("decode");
        clock->mark("encode");
    }
    const auto stages = clock->take();
    ASSERT_EQ(stages.size(), 2U);
    EXPECT_EQ(stages[0].first, "encode");
    EXPECT_EQ(stages[1].first, "decode");
    EXPECT_GT(stages[0].second, 0);
    EXPECT_TRUE(clock->take().empty());
    clock->mark("update");  // since the last mark, which take() has read
    ASSERT_EQ(clock->take().size(), 1U);
}

TEST_F(CudaTest, TheStageClockNeverWaitsAndStaysSmall) {
    const auto clock = backend_.stage_clock();
    const int waits = test::waits();
    const int events = test::live_events();
    clock->start();
    for (int i = 0; i < 20000; ++i) clock->mark("encode");
    EXPECT_EQ(test::waits(), waits);
    EXPECT_LT(test::live_events(), events + 5000);
    EXPECT_EQ(clock->take().size(), 1U);
}

TEST_F(CudaTest, FillRowsOfEveryWidthAndAlignment) {
    for (const Index rows : {1, 3, 129})
        for (const Index cols : {1, 2, 4, 31, 4096, 4100, 9001}) {
            for (const Index offset : {0, 1}) {
                Buffer<float> value = on_device(numbers(rows));
                Buffer<float> out(backend_.memory(), rows * cols + offset, Purpose::workspace);
                const Span<float> filled = out.span().subspan(offset, rows * cols);
                const cuda::Stream stream;
                cuda::fill_rows(raw(value.span()), rows, cols, raw(filled), stream.handle());
                const std::vector<float> got = on_host(Span<const float>(filled));
                for (Index i = 0; i < rows * cols; ++i)
                    ASSERT_EQ(got[static_cast<std::size_t>(i)], static_cast<float>(i / cols));
            }
        }
}

TEST_F(CudaTest, StagedSumsAreThoseOfAllRanks) {
    const auto all = backend_.collectives(world_);
    ASSERT_EQ(all->size(), world_.size());
    const auto p = static_cast<float>(world_.size());
    Buffer<float> floats = on_device({1, static_cast<float>(world_.rank()), -2});
    all->all_reduce_sum(floats.span());
    EXPECT_EQ(on_host(Span<const float>(floats.span())),
              (std::vector<float>{p, p * (p - 1) / 2, -2 * p}));
    Buffer<double> doubles(backend_.memory(), 1, Purpose::workspace);
    const double tiny = 1 + 1e-15;
    backend_.upload(std::span<const double>(&tiny, 1), doubles.span());
    all->all_reduce_sum(doubles.span());
    EXPECT_EQ(backend_.download_one(Span<const double>(doubles.span())), world_.size() * tiny);
    Buffer<Index> counts(backend_.memory(), 1, Purpose::workspace);
    const Index large = Index{1} << 40;
    backend_.upload(std::span<const Index>(&large, 1), counts.span());
    all->all_reduce_sum(counts.span());
    EXPECT_EQ(backend_.download_one(Span<const Index>(counts.span())), world_.size() * large);
    all->all_reduce_sum(Span<float>());
}

TEST_F(CudaTest, StagedBlocksMayDifferInSizeAndBeEmpty) {
    const auto all = backend_.collectives(world_);
    for (const Index fewest : {0, 3}) {
        std::vector<Index> counts;
        for (int r = 0; r < world_.size(); ++r) counts.push_back(fewest + 2 * r);
        const Index total = std::accumulate(counts.begin(), counts.end(), Index{0});
        const Index own = counts[static_cast<std::size_t>(world_.rank())];
        Index before = 0;
        for (int r = 0; r < world_.rank(); ++r) before += counts[static_cast<std::size_t>(r)];

        Buffer<float> in = on_device(numbers(total));
        Buffer<float> out(backend_.memory(), own, Purpose::workspace);
        all->reduce_scatter_sum(in.span(), out.span(), counts);
        std::vector<float> expected = numbers(own, static_cast<float>(before));
        for (float& value : expected) value *= static_cast<float>(world_.size());
        EXPECT_EQ(on_host(Span<const float>(out.span())), expected);

        Buffer<float> part = on_device(numbers(own, static_cast<float>(before)));
        Buffer<float> gathered(backend_.memory(), total, Purpose::workspace);
        all->all_gather(Span<const float>(part.span()), gathered.span(), counts);
        EXPECT_EQ(on_host(Span<const float>(gathered.span())), numbers(total));

        // A rank's part in its own place; the others' places are not written yet.
        Buffer<float> in_place(backend_.memory(), total, Purpose::workspace);
        const Span<float> mine = in_place.span().subspan(before, own);
        backend_.copy(Span<const float>(part.span()), mine);
        all->all_gather(Span<const float>(mine), in_place.span(), counts);
        EXPECT_EQ(on_host(Span<const float>(in_place.span())), numbers(total));
    }
}

TEST(MakeCudaBackend, SaysWhatIsWrong) {
    const Communicator world = Communicator::world();
    const auto backend = make_backend("cuda", world);
    EXPECT_EQ(backend->name(), "cuda");
    // Ranks that share a device do without NCCL, which the emulator refuses.
    EXPECT_EQ(backend->collectives(world)->size(), world.size());
    EXPECT_TRUE(make_backend("cuda", world)->rounds_encoder());
    EXPECT_FALSE(make_backend("cuda", world, "tf32")->rounds_encoder());
    EXPECT_EQ(test::message_of<UserError>([&] { make_backend("cuda", world, "float64"); }),
              "precision = \"float64\": expected \"auto\", \"float32\", \"tf32\" or \"bfloat16\"");
    test::emulate_device(world.rank() != world.size() - 1);  // one host of the job without any
    const std::string message = test::message_of<UserError>([&] { make_backend("cuda", world); });
    test::emulate_device(true);
    EXPECT_EQ(message.find("backend = \"cuda\": no CUDA device on host "), 0U) << message;
    EXPECT_NE(message.find(" (driver: the emulator has none)"), std::string::npos) << message;
}

}  // namespace
}  // namespace clt
