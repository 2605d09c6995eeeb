#include "clt/io/hdf5.hpp"

#include <fcntl.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <limits>
#include <utility>

#include "clt/base/error.hpp"
#include "clt/io/descriptor.hpp"
#include "clt/io/file.hpp"
#include "io/hdf5_call.hpp"
#include "io/hdf5_storage.hpp"

namespace clt {
namespace {

// Large arrays start on a multiple of a parallel file system's usual stripe, so that two ranks'
// parts meet inside one stripe at most once an array.
constexpr hsize_t align_from_bytes = hsize_t{1} << 20;
constexpr hsize_t alignment_bytes = hsize_t{1} << 20;

std::string full_name(const std::string& path, const std::string& name) {
    return path + ":" + (name.starts_with('/') ? "" : "/") + name;
}

H5Handle file_access(const std::string& path, const Communicator* communicator) {
    H5Handle access = h5::own(h5::check(H5Pcreate(H5P_FILE_ACCESS), path, "opened"), H5Pclose);
    const hid_t id = access.id();
    h5::check(H5Pset_libver_bounds(id, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST), path, "opened");
    // Closing the file closes what is still open in it: nothing written can be lost by the order
    // of destructors.
    h5::check(H5Pset_fclose_degree(id, H5F_CLOSE_STRONG), path, "opened");
    h5::check(H5Pset_alignment(id, align_from_bytes, alignment_bytes), path, "opened");
    if (communicator != nullptr && communicator->size() > 1) {
        h5::check(H5Pset_fapl_mpio(id, communicator->handle(), MPI_INFO_NULL), path, "opened");
        // One rank reads the metadata for all; all write it together.
        h5::check(H5Pset_all_coll_metadata_ops(id, true), path, "opened");
        h5::check(H5Pset_coll_metadata_write(id, true), path, "opened");
    } else {
        // HDF5's lock fails on file systems without flock; writers publish whole files by rename,
        // so there is nothing to guard.
        h5::check(H5Pset_file_locking(id, false, true), path, "opened");
    }
    return access;
}

// MPI-IO (ROMIO) takes what stands before a colon for the name of a file system: a path that has
// one gets such a name in front. NFS has its own, for it needs locks around a rank's writes.
std::string name_for(const std::string& path, const Communicator* communicator) {
    if (communicator == nullptr || communicator->size() == 1 || path.find(':') == std::string::npos)
        return path;
    constexpr long nfs = 0x6969;  // NFS_SUPER_MAGIC of linux/magic.h
    struct statfs disk {};
    const bool on_nfs = ::statfs(path.c_str(), &disk) == 0 && disk.f_type == nfs;
    return (on_nfs ? "nfs:" : "ufs:") + path;
}

std::optional<H5Type> type_from_file(hid_t id) {
    for (const H5Type type :
         {H5Type::float32, H5Type::float64, H5Type::float16, H5Type::uint8, H5Type::uint16,
          H5Type::int32, H5Type::int64, H5Type::uint32, H5Type::uint64})
        if (H5Tequal(id, h5::file_type(type)) > 0) return type;
    return std::nullopt;
}

H5Handle open_dataset(hid_t file, const std::string& name, const std::string& where) {
    const H5Handle access =
        h5::own(h5::check(H5Pcreate(H5P_DATASET_ACCESS), where, "opened"), H5Pclose);
    // Of a virtual dataset that grows with its sources: up to the first that is missing.
    h5::check(H5Pset_virtual_view(access.id(), H5D_VDS_FIRST_MISSING), where, "opened");
    const hid_t id = H5Dopen2(file, name.c_str(), access.id());
    if (id < 0) {
        const std::string words = h5::take_words();
        h5::refuse_newer_format(where, words);
        user_error("{}: cannot be opened as a dataset: {}", where, words);
    }
    return h5::own(id, H5Dclose);
}

// H5Lexists needs every parent to exist.
bool link_exists(hid_t file, const std::string& name) {
    for (std::size_t at = 0; at != std::string::npos;) {
        at = name.find('/', at + 1);
        const std::string part = name.substr(0, at);
        if (part.empty() || part == "/") continue;
        if (H5Lexists(file, part.c_str(), H5P_DEFAULT) <= 0) return false;
    }
    return true;
}

}  // namespace

H5Handle::H5Handle(H5Handle&& other) noexcept
    : id_(std::exchange(other.id_, -1)), close_(other.close_), unwind_(other.unwind_) {}

H5Handle& H5Handle::operator=(H5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    std::swap(unwind_, other.unwind_);
    return *this;
}

H5Handle::~H5Handle() {
    if (unwind_ == H5Unwind::abandon && std::uncaught_exceptions() > 0) return;
    if (id_ >= 0) close_(id_);
}

void H5Handle::close(const std::string& name) {
    if (id_ >= 0) h5::check(close_(std::exchange(id_, -1)), name, "closed");
}

H5File H5File::open(const std::string& path, const Communicator* communicator) {
    h5::quiet();
    H5File file;
    file.path_ = path;
    file.communicator_ = communicator;
    h5::together(communicator, [&] {
        if (communicator != nullptr && communicator->rank() != 0) return;
        const Descriptor descriptor(path, O_RDONLY, "read");
        const Index length = descriptor.size();
        const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
        H5Eclear2(H5E_DEFAULT);
        if (is_hdf5 <= 0)
            user_error("{}: not an HDF5 file ({} bytes), or cut at its very start", path, length);
    });
    h5::together(communicator, [&] {
        const H5Handle access = file_access(path, communicator);
        const hid_t id = H5Fopen(name_for(path, communicator).c_str(), H5F_ACC_RDONLY, access.id());
        if (id < 0) {
            const std::string words = h5::take_words();
            if (words.find("truncated file") != std::string::npos)
                user_error("{}: the file is cut: {}", path, words);
            if (words.find("already open for write") != std::string::npos)
                user_error("{}: its writer did not finish it", path);
            h5::refuse_newer_format(path, words);
            user_error("{}: cannot be read as HDF5: {}", path, words);
        }
        const bool parallel = communicator != nullptr && communicator->size() > 1;
        *file.handle_ = h5::own(id, H5Fclose, parallel ? H5Unwind::abandon : H5Unwind::close);
    });
    return file;
}

H5File H5File::create(const std::string& path, const Communicator* communicator) {
    h5::quiet();
    H5File file;
    file.path_ = path;
    file.communicator_ = communicator;
    // The system's own words for a folder that is missing or closed to us; MPI-IO has vaguer ones.
    h5::together(communicator, [&] {
        if (communicator == nullptr || communicator->rank() == 0)
            Descriptor(path, O_WRONLY | O_CREAT | O_TRUNC, "created").close();
    });
    h5::together_writing(communicator, path, file.handle_, [&] {
        const H5Handle access = file_access(path, communicator);
        const hid_t id = H5Fcreate(name_for(path, communicator).c_str(), H5F_ACC_TRUNC, H5P_DEFAULT,
                                   access.id());
        *file.handle_ = h5::own(h5::check(id, path, "created"), H5Fclose, H5Unwind::abandon);
    });
    file.set_aside(0);
    return file;
}

// Space for `bytes` more, and for metadata. A collective write of HDF5 1.10 that fails on some
// ranks only never ends: the others wait in MPI_File_set_view. With the space taken, it cannot fail
// for want of it.
void H5File::set_aside(Index bytes, Index pieces) {
    bytes_set_aside_ += bytes;
    // What lies between aligned pieces counts too.
    if (bytes >= static_cast<Index>(align_from_bytes))
        bytes_set_aside_ += pieces * static_cast<Index>(alignment_bytes);
    h5::together_writing(communicator_, path_, handle_, [&] {
        if (communicator_ == nullptr || communicator_->rank() == 0)
            reserve_space(path_, bytes_set_aside_ + h5::metadata_bytes);
    });
}

bool H5File::has(const std::string& name) const {
    const bool found = link_exists(handle_->id(), name);
    H5Eclear2(H5E_DEFAULT);
    return found;
}

std::vector<std::string> H5File::children(const std::string& group) const {
    std::vector<std::string> names;
    h5::together(communicator_, [&] {
        const std::string where = full_name(path_, group);
        if (group != "/" && !link_exists(handle_->id(), group))
            user_error("{}: there is no such group", where);
        const H5Handle id = h5::own(
            h5::check(H5Gopen2(handle_->id(), group.c_str(), H5P_DEFAULT), where, "read", true),
            H5Gclose);
        const auto add = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
            static_cast<std::vector<std::string>*>(out)->emplace_back(name);
            return 0;
        };
        h5::check(H5Literate(id.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), where,
                  "read", true);
    });
    return names;
}

H5Dataset H5File::dataset(const std::string& name) const {
    H5Dataset dataset;
    dataset.path_ = path_;
    dataset.file_ = handle_;
    dataset.name_ = full_name(path_, name);
    dataset.communicator_ = communicator_;
    h5::together(communicator_, [&] {
        const std::string& where = dataset.name_;
        if (!link_exists(handle_->id(), name)) {
            H5Eclear2(H5E_DEFAULT);
            user_error("{}: there is no such dataset", where);
        }
        dataset.handle_ = open_dataset(handle_->id(), name, where);
        if (communicator_ != nullptr && communicator_->size() > 1 &&
            h5::lies_elsewhere(dataset.handle_.id(), where)) {
            dataset.own_file_ = open(path_).handle_;
            dataset.handle_ = open_dataset(dataset.own_file_->id(), name, where);
        }
        const hid_t id = dataset.handle_.id();
        h5::check_filters(id, where);
        h5::check_storage(id, path_, where);
        const H5Handle type = h5::own(h5::check(H5Dget_type(id), where, "read"), H5Tclose);
        const H5Handle space = h5::own(h5::check(H5Dget_space(id), where, "read"), H5Sclose);
        const std::optional<H5Type> known = type_from_file(type.id());
        if (!known)
            user_error(
                "{}: its element type is none of little-endian float16, float32, float64, uint8, "
                "uint16, int32, uint32, int64, uint64",
                where);
        dataset.type_ = *known;
        std::array<hsize_t, H5S_MAX_RANK> extent{};
        const int rank =
            h5::check(H5Sget_simple_extent_dims(space.id(), extent.data(), nullptr), where, "read");
        if (rank == 0) user_error("{}: holds a single value, expected an array", where);
        dataset.rows_ = static_cast<Index>(extent[0]);
        dataset.cols_ = 1;
        for (int i = 1; i < rank; ++i)
            dataset.cols_ *= static_cast<Index>(extent[static_cast<std::size_t>(i)]);
    });
    return dataset;
}

H5Dataset H5File::create_dataset(const std::string& name, H5Type type, Index rows, Index cols,
                                 Index chunk_rows, int gzip) {
    CLT_CHECK(rows >= 0 && cols >= 0 && chunk_rows >= 0 && gzip >= 0 && gzip <= 9);
    CLT_CHECK(gzip == 0 || (chunk_rows > 0 && communicator_ == nullptr),
              "{}: one process compresses, and only chunks", name);
    H5Dataset dataset;
    dataset.name_ = full_name(path_, name);
    dataset.path_ = path_;
    dataset.file_ = handle_;
    dataset.communicator_ = communicator_;
    dataset.type_ = type;
    dataset.rows_ = rows;
    dataset.cols_ = std::max<Index>(1, cols);
    if (gzip == 0) set_aside(rows * dataset.cols_ * size_of(type));
    h5::together_writing(communicator_, path_, handle_, [&] {
        const std::string& where = dataset.name_;
        const int rank = cols == 0 ? 1 : 2;
        const std::array<hsize_t, 2> extent = {static_cast<hsize_t>(rows),
                                               static_cast<hsize_t>(cols)};
        const H5Handle links =
            h5::own(h5::check(H5Pcreate(H5P_LINK_CREATE), where, "created"), H5Pclose);
        h5::check(H5Pset_create_intermediate_group(links.id(), 1), where, "created");
        const H5Handle layout =
            h5::own(h5::check(H5Pcreate(H5P_DATASET_CREATE), where, "created"), H5Pclose);
        if (chunk_rows > 0 && rows > 0) {
            // A chunk takes less than 2^32 bytes and no more rows than there are.
            const Index limit =
                std::numeric_limits<std::uint32_t>::max() / (dataset.cols_ * size_of(type));
            dataset.chunk_rows_ = std::max<Index>(1, std::min({chunk_rows, rows, limit}));
            const std::array<hsize_t, 2> chunk = {static_cast<hsize_t>(dataset.chunk_rows_),
                                                  extent[1]};
            h5::check(H5Pset_chunk(layout.id(), rank, chunk.data()), where, "created");
            if (gzip > 0)
                h5::check(H5Pset_deflate(layout.id(), static_cast<unsigned>(gzip)), where,
                          "created");
        }
        // Every element is written by us: filling it first would write the array twice.
        h5::check(H5Pset_fill_time(layout.id(), H5D_FILL_TIME_NEVER), where, "created");
        if (gzip == 0) {
            // Allocated late, as HDF5 does without MPI, a dataset of a single chunk that is larger
            // than the chunk cache loses its address (1.10.8): it reads as zeros.
            h5::check(H5Pset_alloc_time(layout.id(), H5D_ALLOC_TIME_EARLY), where, "created");
        }
        const H5Handle space = h5::own(
            h5::check(H5Screate_simple(rank, extent.data(), nullptr), where, "created"), H5Sclose);
        dataset.handle_ =
            h5::own(h5::check(H5Dcreate2(handle_->id(), name.c_str(), h5::file_type(type),
                                         space.id(), links.id(), layout.id(), H5P_DEFAULT),
                              where, "created"),
                    H5Dclose, H5Unwind::abandon);
    });
    return dataset;
}

void H5File::write_text(const std::string& name, const std::string& text) {
    set_aside(static_cast<Index>(text.size()));
    h5::together_writing(communicator_, path_, handle_,
                         [&] { h5::write_text(handle_->id(), path_, name, text); });
}

std::optional<std::string> H5File::read_text(const std::string& name) const {
    std::optional<std::string> text;
    h5::together(communicator_, [&] { text = h5::read_text(handle_->id(), path_, name); });
    return text;
}

void H5File::close() {
    h5::together(communicator_, [&] { handle_->close(path_); });
}

}  // namespace clt
