#include <fcntl.h>

#include <algorithm>
#include <array>
#include <vector>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/base/progress.hpp"
#include "clt/io/descriptor.hpp"
#include "io/hdf5_call.hpp"
#include "io/hdf5_storage.hpp"

namespace clt {
namespace {

// MPI-IO and HDF5's own MPI types count bytes in int; 2^30 leaves room.
constexpr Index max_transfer_bytes = Index{1} << 30;

bool is_collective(hid_t transfer) {
    H5D_mpio_actual_io_mode_t mode = H5D_MPIO_NO_COLLECTIVE;
    if (H5Pget_mpio_actual_io_mode(transfer, &mode) < 0) return false;
    return mode == H5D_MPIO_CHUNK_COLLECTIVE || mode == H5D_MPIO_CONTIGUOUS_COLLECTIVE;
}

}  // namespace

Index size_of(H5Type type) {
    switch (type) {
        case H5Type::uint8:
            return 1;
        case H5Type::float16:
        case H5Type::uint16:
            return 2;
        case H5Type::float32:
        case H5Type::int32:
        case H5Type::uint32:
            return 4;
        case H5Type::float64:
        case H5Type::int64:
        case H5Type::uint64:
            return 8;
    }
    return 0;
}

void H5Dataset::transfer(bool writes, Shard range, void* data) const {
    const char* const doing = writes ? "written" : "read";
    CLT_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= rows_,
              "{}: rows [{}, {}) of {}", name_, range.begin, range.end, rows_);
    const bool parallel = communicator_ != nullptr && communicator_->size() > 1;
    collective_ = true;
    const Index row_bytes = cols_ * size_of(type_);
    if (rows_ * row_bytes == 0) return;  // no storage: HDF5 would refuse a parallel transfer
    const Index piece_rows = std::max<Index>(1, max_transfer_bytes / row_bytes);
    Index pieces = (range.size() + piece_rows - 1) / piece_rows;
    if (!parallel || rows_ <= piece_rows)
        pieces = std::max<Index>(1, pieces);  // no rank can need more than one
    else
        pieces = std::max<Index>(1, communicator_->all_reduce_max(pieces));

    H5Handle plist;
    H5Handle space;
    std::vector<hsize_t> extent;
    h5::together(communicator_, [&] {
        plist = h5::own(h5::check(H5Pcreate(H5P_DATASET_XFER), name_, doing), H5Pclose);
        if (parallel && own_file_ == nullptr)
            h5::check(H5Pset_dxpl_mpio(plist.id(), H5FD_MPIO_COLLECTIVE), name_, doing);
        space = h5::own(h5::check(H5Dget_space(handle_.id()), name_, doing), H5Sclose);
        const int rank = h5::check(H5Sget_simple_extent_ndims(space.id()), name_, doing);
        extent.resize(static_cast<std::size_t>(rank));
        h5::check(H5Sget_simple_extent_dims(space.id(), extent.data(), nullptr), name_, doing);
    });
    for (Index piece = 0; piece < pieces; ++piece) {
        const Index begin = std::min(range.end, range.begin + piece * piece_rows);
        const Index rows = std::min(piece_rows, range.end - begin);
        const auto move_piece = [&] {
            std::vector<hsize_t> start(extent.size(), 0);
            std::vector<hsize_t> count = extent;
            start[0] = static_cast<hsize_t>(begin);
            count[0] = static_cast<hsize_t>(rows);
            // Of the dataset's own rank: for another HDF5 walks chunked data element by element.
            H5Handle memory = h5::own(
                h5::check(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr),
                          name_, doing),
                H5Sclose);
            if (rows > 0) {
                h5::check(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr,
                                              count.data(), nullptr),
                          name_, doing);
            } else {
                h5::check(H5Sselect_none(space.id()), name_, doing);
                h5::check(H5Sselect_none(memory.id()), name_, doing);
            }
            auto* const at = static_cast<std::byte*>(data) + (begin - range.begin) * row_bytes;
            const hid_t type = h5::file_type(type_);
            if (writes)
                h5::check(H5Dwrite(handle_.id(), type, memory.id(), space.id(), plist.id(), at),
                          name_, doing);
            else
                h5::check(H5Dread(handle_.id(), type, memory.id(), space.id(), plist.id(), at),
                          name_, doing, true);
        };
        if (writes)
            h5::together_writing(communicator_, path_, file_.lock(), move_piece);
        else
            h5::together(communicator_, move_piece);
        note_progress();
        if (parallel) collective_ = collective_ && is_collective(plist.id());
    }
}

void H5Dataset::read(Shard range, void* out) const {
    transfer(false, range, out);
}

void H5Dataset::write_deflated(Index first_row, std::span<const std::byte> bytes) {
    CLT_CHECK(communicator_ == nullptr && chunk_rows_ > 0 && first_row % chunk_rows_ == 0,
              "{}: row {}", name_, first_row);
    h5::together_writing(communicator_, path_, file_.lock(), [&] {
        const std::array<hsize_t, 2> place = {static_cast<hsize_t>(first_row), 0};
        h5::check(
            H5Dwrite_chunk(handle_.id(), H5P_DEFAULT, 0, place.data(), bytes.size(), bytes.data()),
            name_, "written");
    });
}

void H5Dataset::write_text(const std::string& name, const std::string& text) {
    h5::together_writing(communicator_, path_, file_.lock(),
                         [&] { h5::write_text(handle_.id(), name_, name, text); });
}

std::optional<std::string> H5Dataset::read_text(const std::string& name) const {
    std::optional<std::string> text;
    h5::together(communicator_, [&] { text = h5::read_text(handle_.id(), name_, name); });
    return text;
}

std::uint64_t H5Dataset::sample() const {
    CLT_CHECK(communicator_ == nullptr, "{}", name_);
    const auto stored = h5::stored_ends(handle_.id(), name_);
    std::string seen;
    if (stored.empty()) {  // in the header or in other files
        seen.resize(static_cast<std::size_t>(std::min<Index>(rows_, 1) * cols_ * size_of(type_)));
        read({0, std::min<Index>(rows_, 1)}, seen.data());
    } else {
        const Descriptor file(path_, O_RDONLY, "read");
        for (const Shard bytes : stored) {
            const std::size_t at = seen.size();
            seen.resize(at + static_cast<std::size_t>(bytes.size()));
            file.read_at(bytes.begin, seen.data() + at, bytes.size());
        }
    }
    return mix(H5Dget_storage_size(handle_.id()), checksum_of(seen));
}

void H5Dataset::write(Shard range, const void* in) {
    transfer(true, range, const_cast<void*>(in));  // H5Dwrite reads only
}

}  // namespace clt
