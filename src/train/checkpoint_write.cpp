// Host memory to a file.
#include <algorithm>
#include <filesystem>

#include "clt/base/checksum.hpp"
#include "clt/io/file.hpp"
#include "train/checkpoint_format.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

constexpr const char* temporary_suffix = ".tmp";

std::uint64_t checksum_of_array(const SnapshotArray& array, const std::byte* data) {
    const Index count = array.own.size() * array.width;
    const Index first = array.own.begin * array.width;
    if (array.type == H5Type::float32)
        return checksum_of(reinterpret_cast<const float*>(data), count, first);
    CLT_CHECK(array.type == H5Type::int64);
    return checksum_of(reinterpret_cast<const Index*>(data), count, first);
}

void write_arrays(H5File& file, const CheckpointSnapshot& snapshot, const Communicator& all,
                  CheckpointTexts& texts) {
    // All arrays are made before the first is written: each sets its disk space aside, so a disk
    // without room for the whole checkpoint is refused at once.
    std::vector<H5Dataset> datasets;
    for (const SnapshotArray& array : snapshot.arrays())
        datasets.push_back(file.create_dataset(array.name, array.type, array.rows, array.width));
    std::vector<std::uint64_t> sums;
    for (const SnapshotArray& array : snapshot.arrays()) {
        const std::byte* data = snapshot.data(array);
        datasets[sums.size()].write(array.own, data);
        sums.push_back(checksum_of_array(array, data));
        if (all.rank() == 0) begin_sync(file.path());
    }
    all.all_reduce_sum(std::span(sums));
    Checksums checksums;
    for (std::size_t i = 0; i < sums.size(); ++i) checksums[snapshot.arrays()[i].name] = sums[i];
    seal(texts, checksums);
    write_texts(file, texts);
}

}  // namespace

void write_checkpoint(const std::string& folder, const CheckpointSnapshot& snapshot,
                      const Communicator& all) {
    const std::string path =
        (fs::path(folder) / fmt::format("step_{}.h5", snapshot.step())).string();
    const std::string temporary = path + temporary_suffix;
    // HDF5 wants the same attributes of every rank.
    CheckpointTexts texts =
        broadcast(make_texts(snapshot.shape(), snapshot.model(), snapshot.state()), all);
    try {
        H5File file = H5File::create(temporary, &all);
        write_arrays(file, snapshot, all, texts);
        file.close();
        all.together([&] { sync_file(temporary); });
        all.together([&] {
            if (all.rank() == 0) publish_file(temporary, path);
        });
    } catch (...) {
        std::error_code ignored;
        if (all.rank() == 0) fs::remove(temporary, ignored);
        throw;
    }
}

}  // namespace clt
