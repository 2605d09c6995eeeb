// Parallel HDF5: what is written by any ranks is read by any others, bit for bit, collectively.
#include "clt/io/hdf5.hpp"
#include "clt/base/disk_full.hpp"

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cstring>
#include <filesystem>
#include <numeric>
#include <optional>

#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "support/file_size_limit.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using test::message_of;
using test::Scratch;

struct Layout {
    Index rows, cols, chunk_rows;
    int gzip;
};
// The last three are larger than HDF5's chunk cache (1 MiB): those chunks are written past it.
const std::vector<Layout> layouts = {
    {0, 3, 0, 0},        {1, 1, 0, 0},         {7, 0, 0, 0},         {37, 5, 0, 0},
    {37, 5, 8, 0},       {37, 5, 8, 4},        {64, 33, 64, 0},      {0, 4, 16, 0},
    {1000, 129, 100, 1}, {9000, 128, 9000, 0}, {9000, 128, 4000, 0}, {9000, 128, 9000, 1}};
const std::vector<H5Type> all_types = {H5Type::float32, H5Type::float64, H5Type::float16,
                                       H5Type::uint8,   H5Type::uint16,  H5Type::int32,
                                       H5Type::int64,   H5Type::uint32,  H5Type::uint64};

// Bytes of rows [range) of an array whose byte i is a mix of i and `salt`: any bit pattern must
// survive, NaN payloads too.
std::vector<std::uint8_t> pattern(Shard range, Index row_bytes, int salt) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(range.size() * row_bytes));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const auto at = static_cast<std::uint64_t>(range.begin * row_bytes) + i;
        bytes[i] =
            static_cast<std::uint8_t>((at * 0x9E3779B97F4A7C15U + std::uint64_t(salt)) >> 56);
    }
    return bytes;
}

// Uneven shares in rank order; the last rank of several has none.
Shard uneven(Index rows, int rank, int size) {
    if (size == 1) return {0, rows};
    const int writers = size - 1;
    if (rank == writers) return {rows, rows};
    const auto cut = [&](int r) { return rows * r * (r + 1) / (writers * (writers + 1)); };
    return {cut(rank), cut(rank + 1)};
}

std::string name_of(std::size_t layout, std::size_t type) {
    return fmt::format("layout_{:02}/type_{}/data", layout, type);
}

// Chunks of a compressed array as one process writes them, the last filled up.
void write_deflated(H5Dataset& data, const Layout& layout, const std::vector<std::uint8_t>& all) {
    const Index row_bytes = data.cols() * size_of(data.type());
    for (Index row = 0; row < layout.rows; row += data.chunk_rows()) {
        std::vector<std::uint8_t> block(
            all.begin() + row * row_bytes,
            all.begin() + std::min(layout.rows, row + data.chunk_rows()) * row_bytes);
        block.resize(static_cast<std::size_t>(data.chunk_rows() * row_bytes));
        data.write_deflated(row, deflate(std::as_bytes(std::span(block)), layout.gzip));
    }
}

TEST(Hdf5, RoundTripsEveryTypeAndLayoutWithUnevenAndEmptyRanges) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string plain = scratch / "plain.h5";
    const std::string compressed = scratch / "compressed.h5";  // written by one process
    {
        H5File file = H5File::create(plain, &world);
        std::optional<H5File> other;
        if (world.rank() == 0) other = H5File::create(compressed);
        for (std::size_t l = 0; l < layouts.size(); ++l)
            for (std::size_t t = 0; t < all_types.size(); ++t) {
                const Layout& layout = layouts[l];
                if (layout.gzip > 0 && !other) continue;
                H5Dataset data = (layout.gzip > 0 ? *other : file)
                                     .create_dataset(name_of(l, t), all_types[t], layout.rows,
                                                     layout.cols, layout.chunk_rows, layout.gzip);
                const Index row_bytes = data.cols() * size_of(data.type());
                if (layout.gzip > 0) {
                    write_deflated(data, layout, pattern({0, layout.rows}, row_bytes, int(t)));
                    continue;
                }
                const Shard own = uneven(layout.rows, world.rank(), world.size());
                data.write(own, pattern(own, row_bytes, int(t)).data());
                if (layout.rows > 0) {
                    EXPECT_TRUE(data.last_was_collective()) << l;
                }
            }
        file.close();
        if (other) other->close();
        world.barrier();
    }
    for (const Communicator* readers : {&world, static_cast<const Communicator*>(nullptr)}) {
        const H5File file = H5File::open(plain, readers);
        const H5File other = H5File::open(compressed, readers);
        EXPECT_EQ(file.children().size() + other.children().size(), layouts.size());
        EXPECT_EQ(file.children()[1], "layout_01");
        EXPECT_TRUE(file.has("layout_00/type_0/data"));
        EXPECT_FALSE(file.has("layout_00/none/data"));
        for (std::size_t l = 0; l < layouts.size(); ++l)
            for (std::size_t t = 0; t < all_types.size(); ++t) {
                const H5Dataset data = (layouts[l].gzip > 0 ? other : file).dataset(name_of(l, t));
                ASSERT_EQ(data.type(), all_types[t]);
                ASSERT_EQ(data.rows(), layouts[l].rows);
                ASSERT_EQ(data.cols(), std::max<Index>(1, layouts[l].cols));
                // The other way round than written: rank 0 of several reads nothing.
                const Shard own =
                    uneven(data.rows(), world.size() - 1 - world.rank(), world.size());
                const Index row_bytes = data.cols() * size_of(data.type());
                std::vector<std::uint8_t> got(static_cast<std::size_t>(own.size() * row_bytes));
                data.read(own, got.data());
                EXPECT_EQ(got, pattern(own, row_bytes, int(t))) << l << " " << t;
                if (readers != nullptr && data.rows() > 0) {
                    EXPECT_TRUE(data.last_was_collective()) << l;
                }
            }
    }
}

// Chunks that nobody wrote read as zeros or as whatever the buffer held, and hang several ranks.
TEST(Hdf5, AnArrayThatIsNotWhollyThereIsRefusedWhenOpened) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string path = scratch / "file.h5";
    if (world.rank() == 0) {
        H5File file = H5File::create(path);
        const Layout layout{40, 3, 10, 1};
        for (const char* name : {"whole", "half", "none"}) {
            H5Dataset data = file.create_dataset(name, H5Type::float32, 40, 3, 10, 1);
            if (name == std::string("whole"))
                write_deflated(data, layout, pattern({0, 40}, 12, 0));
            else if (name == std::string("half"))
                write_deflated(data, {20, 3, 10, 1}, pattern({0, 20}, 12, 0));
        }
        file.close();
    }
    world.barrier();
    const std::string why =
        " HDF5 chunks were never written (its writer stopped); generate this file again";
    for (const Communicator* readers : {&world, static_cast<const Communicator*>(nullptr)}) {
        const H5File file = H5File::open(path, readers);
        EXPECT_EQ(file.dataset("whole").rows(), 40);
        EXPECT_EQ(message_of<UserError>([&] { file.dataset("half"); }),
                  path + ":/half: 2 of 4" + why);
        EXPECT_EQ(message_of<UserError>([&] { file.dataset("none"); }),
                  path + ":/none: 4 of 4" + why);
    }
}

TEST(Hdf5, TextAttributesOfAnyLength) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string path = scratch / "file.h5";
    const std::string large(1'000'000, 'x');
    H5File file = H5File::create(path, &world);
    file.write_text("empty", "");
    file.write_text("utf8", "θ ≥ 0");
    file.write_text("large", "first");
    file.write_text("large", large);
    file.close();
    const H5File again = H5File::open(path, &world);
    EXPECT_EQ(again.read_text("empty"), "");
    EXPECT_EQ(again.read_text("utf8"), "θ ≥ 0");
    EXPECT_EQ(again.read_text("large"), large);
    EXPECT_EQ(again.read_text("none"), std::nullopt);
    H5File other = H5File::create(scratch / "array.h5", &world);
    H5Dataset data = other.create_dataset("data", H5Type::uint8, 4, 0);
    data.write(shard_of(4, world.rank(), world.size()), "abcd");
    data.write_text("of", "data");
    other.close();
    const H5File reopened = H5File::open(scratch / "array.h5", &world);
    EXPECT_EQ(reopened.dataset("data").read_text("of"), "data");
    EXPECT_EQ(reopened.read_text("of"), std::nullopt);
}

TEST(Hdf5, FilesHaveSuperblockVersion3) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string path = scratch / "file.h5";
    H5File::create(path, &world).close();
    EXPECT_EQ(read_file(path)[8], 3);  // after the signature of 8 bytes
}

// Truncated anywhere: refused at open, by all ranks, with the file's name.
TEST(Hdf5, RefusesAFileCutAnywhere) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string path = scratch / "whole.h5";
    const std::string cut = scratch / "cut.h5";
    {
        H5File file = H5File::create(path, &world);
        H5Dataset data = file.create_dataset("layer_0/inputs", H5Type::float32, 100, 8, 10);
        const Shard own = shard_of(100, world.rank(), world.size());
        data.write(own, pattern(own, 32, 0).data());
        file.close();
    }
    const std::string whole = world.rank() == 0 ? read_file(path) : std::string();
    const Index length = world.broadcast(static_cast<Index>(whole.size()));
    for (const Index keep : {Index{0}, Index{4}, Index{8}, Index{20}, Index{48}, length / 2,
                             length - 100, length - 1}) {
        if (world.rank() == 0) write_file(cut, whole.substr(0, static_cast<std::size_t>(keep)));
        world.barrier();
        EXPECT_NE(message_of<UserError>([&] { H5File::open(cut, &world); }).find(cut),
                  std::string::npos)
            << keep;
        EXPECT_NE(message_of<UserError>([&] { H5File::open(cut); }).find(cut), std::string::npos);
        world.barrier();
    }
}

TEST(Hdf5, NamesWhatIsMissingOrOfAnotherKind) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string text = scratch / "text.h5";
    if (world.rank() == 0) write_file(text, std::string(5000, 'a'));
    world.barrier();
    EXPECT_EQ(message_of<UserError>([&] { H5File::open(scratch / "none.h5", &world); }),
              scratch / "none.h5: cannot be read: No such file or directory");
    EXPECT_EQ(message_of<UserError>([&] { H5File::open(scratch.path(), &world); }),
              scratch.path() + ": cannot be read: Is a directory");
    EXPECT_EQ(message_of<UserError>([&] { H5File::open(text, &world); }),
              text + ": not an HDF5 file (5000 bytes), or cut at its very start");
    EXPECT_EQ(message_of<UserError>([&] { H5File::create(scratch / "no/file.h5", &world); }),
              scratch / "no/file.h5: cannot be created: No such file or directory");
    const std::string path = scratch / "file.h5";
    H5File file = H5File::create(path, &world);
    file.create_dataset("group/data", H5Type::int32, 0, 0);
    EXPECT_EQ(message_of<UserError>([&] { file.dataset("group/other"); }),
              path + ":/group/other: there is no such dataset");
    EXPECT_EQ(message_of<UserError>([&] { file.children("other"); }),
              path + ":/other: there is no such group");
    EXPECT_NE(message_of<UserError>([&] { file.dataset("group"); }).find(path + ":/group: "),
              std::string::npos);
}

void write_and_read_a_small_file(const std::string& path, const Communicator& world) {
    {
        H5File file = H5File::create(path, &world);
        H5Dataset data = file.create_dataset("data", H5Type::uint8, 4, 0);
        const Shard own = shard_of(4, world.rank(), world.size());
        data.write(own, "abcd" + own.begin);
        file.close();
    }
    std::string back(4, '\0');
    H5File::open(path).dataset("data").read({0, 4}, back.data());
    EXPECT_EQ(back, "abcd");
    world.barrier();
}

TEST(Hdf5, AFullDiskIsToldBeforeAnythingIsWritten) {
    const Communicator world = Communicator::world();
    const Scratch scratch(world);
    const std::string disk = scratch / "disk";
    bool mounted = false;
    if (world.rank() == 0) {
        std::filesystem::create_directory(disk);
        mounted = ::mount("clt-test", disk.c_str(), "tmpfs", 0, "size=4m") == 0;
    }
    if (!world.broadcast(mounted)) GTEST_SKIP() << "mount(2) is not permitted here";
    const std::string path = disk + "/file.h5";
    const std::string message = message_of<DiskFullError>([&] {
        H5File file = H5File::create(path, &world);
        file.create_dataset("data", H5Type::uint8, 1000, 8000);
    });
    EXPECT_TRUE(message.starts_with(path + ": cannot be written, ")) << message;
    EXPECT_TRUE(message.ends_with(" are missing: No space left on device")) << message;
    world.barrier();
    write_and_read_a_small_file(path, world);
    if (world.rank() == 0) {
        EXPECT_EQ(::umount2(disk.c_str(), MNT_DETACH), 0);
    }
}

// Where no space can be set aside (here: a limit that comes later), the write itself fails.
TEST(Hdf5, AWriteThatFailsRemovesTheFile) {
    const Scratch scratch;
    const std::string path = scratch / "file.h5";
    std::optional<test::FileSizeLimit> limit;
    const std::string message = message_of<UserError>([&] {
        H5File file = H5File::create(path);
        H5Dataset data = file.create_dataset("data", H5Type::uint8, 1000, 4000);
        limit.emplace(100'000);
        data.write({0, 1000}, pattern({0, 1000}, 4000, 0).data());
    });
    limit.reset();
    EXPECT_EQ(message.find(path + ":/data: cannot be written: "), 0U) << message;
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
    EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace clt
