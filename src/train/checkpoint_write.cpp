// Host memory to a file.
#include <algorithm>
#include <filesystem>

#include "clt/base/checksum.hpp"
#include "clt/base/disk_full.hpp"
#include "clt/io/file.hpp"
#include "train/checkpoint_format.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

constexpr const char* temporary_suffix = ".tmp";

// Checksums of all blocks of all arrays, in the file's order. A number that is not finite makes a
// checkpoint worthless, and pruning would then remove a good one: it is found in the same pass, and
// refused before there is a file.
std::vector<std::uint64_t> block_sums(const std::string& path, const CheckpointSnapshot& snapshot,
                                      const Communicator& all) {
    std::vector<std::uint64_t> sums;
    std::vector<Index> places;  // of the first that is not finite, negative: the max is the first
    for (const SnapshotArray& array : snapshot.arrays()) {
        const std::byte* data = snapshot.data(array);
        const Index block_rows = block_rows_of(array);
        const std::size_t first = sums.size();
        sums.resize(first + static_cast<std::size_t>(blocks_of(array, block_rows)), 0);
        add_block_sums(array, block_rows, array.own, data, std::span(sums).subspan(first));
        places.push_back(-first_not_finite(array, array.own, data));
    }
    all.all_reduce_sum(std::span(sums));
    all.all_reduce_max(std::span(places));
    for (std::size_t i = 0; i < places.size(); ++i)
        if (-places[i] != all_finite)
            user_error("{}: not saved: {}; older checkpoints stay", path,
                       not_finite_text(snapshot.arrays()[i], -places[i]));
    return sums;
}

void write_arrays(H5File& file, const CheckpointSnapshot& snapshot, const Communicator& all,
                  const std::vector<std::uint64_t>& sums) {
    // All arrays are made before the first is written: each sets its disk space aside, so a disk
    // without room for the whole checkpoint is refused at once.
    const auto blocks = static_cast<Index>(sums.size());
    std::vector<H5Dataset> datasets;
    for (const SnapshotArray& array : snapshot.arrays())
        datasets.push_back(file.create_dataset(array.name, array.type, array.rows, array.width));
    datasets.push_back(file.create_dataset(block_checksums_name, H5Type::uint64, blocks, 1));
    for (std::size_t i = 0; i < snapshot.arrays().size(); ++i) {
        const SnapshotArray& array = snapshot.arrays()[i];
        datasets[i].write(array.own, snapshot.data(array));
        if (all.rank() == 0) begin_sync(file.path());
    }
    datasets.back().write({0, all.rank() == 0 ? blocks : 0}, sums.data());
}

// What was written is what is there: MPI-IO has been seen to lose writes without a word.
CheckpointHeader read_back(const std::string& temporary, const Communicator& all) {
    CheckpointHeader header = read_checkpoint_header(temporary, all);
    const std::vector<std::string> problems = verify_checkpoint(header, all, /*stoppable=*/false);
    if (!problems.empty())
        throw LibraryError(fmt::format("{}: reads back otherwise than it was written: {}",
                                       temporary, problems.front()));
    return header;
}

}  // namespace

void require_disk_space(const std::string& folder, Index bytes, const Communicator& all) {
    all.together([&] {
        if (all.rank() != 0) return;
        const Index left = free_bytes(folder).value_or(bytes);
        if (left < bytes)
            throw DiskFullError(
                fmt::format("{}: no room for a checkpoint: {} bytes are needed, {} are free, {} "
                            "are missing",
                            folder, bytes, left, bytes - left));
    });
}

VerifiedCheckpoint write_checkpoint(const std::string& folder, const CheckpointSnapshot& snapshot,
                                    const Communicator& all) {
    const std::string path = (fs::path(folder) / CheckpointName{snapshot.step()}.text()).string();
    const std::string temporary = path + temporary_suffix;
    // HDF5 wants the same attributes of every rank.
    CheckpointTexts texts = broadcast(make_texts(snapshot), all);
    require_disk_space(folder, snapshot.file_bytes(), all);
    const std::vector<std::uint64_t> sums = block_sums(path, snapshot, all);
    seal(texts, sums);
    try {
        H5File file = H5File::create(temporary, &all);
        write_arrays(file, snapshot, all, sums);
        write_texts(file, texts);
        file.close();
        if (all.rank() == 0) begin_sync(temporary);  // the disk works while we read
        const CheckpointHeader header = read_back(temporary, all);
        all.together([&] { sync_file(temporary); });
        all.together([&] {
            if (all.rank() == 0) publish_file(temporary, path);
        });
        return {snapshot.step(), header.bytes, header.seal};
    } catch (...) {
        std::error_code ignored;
        if (all.rank() == 0) fs::remove(temporary, ignored);
        throw;
    }
}

}  // namespace clt
