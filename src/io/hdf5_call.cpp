#include "io/hdf5_call.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "clt/base/disk_full.hpp"
#include "clt/base/error.hpp"
#include "clt/io/file.hpp"

namespace clt::h5 {
namespace {

herr_t collect(unsigned, const H5E_error2_t* error, void* out) {
    std::string line = error->desc == nullptr ? "" : error->desc;
    auto& lines = *static_cast<std::vector<std::string>*>(out);
    if (!line.empty() && (lines.empty() || lines.back() != line)) lines.push_back(std::move(line));
    return 0;
}

// What HDF5 (errno's words) and MPI (error classes) say when the user's disk is at fault.
bool names_full_disk(const std::string& words) {
    constexpr std::array<std::string_view, 4> signs = {"No space left", "Disk quota exceeded",
                                                       "MPI_ERR_NO_SPACE", "MPI_ERR_QUOTA"};
    return std::any_of(signs.begin(), signs.end(), [&](std::string_view sign) {
        return words.find(sign) != std::string::npos;
    });
}
bool names_users_fault(const std::string& words) {
    constexpr std::array<std::string_view, 5> signs = {"File too large", "Permission denied",
                                                       "Read-only file system", "MPI_ERR_READ_ONLY",
                                                       "MPI_ERR_ACCESS"};
    for (const std::string_view sign : signs)
        if (words.find(sign) != std::string::npos) return true;
    return false;
}

}  // namespace

void quiet() {
    static const bool done = [] {
        H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
        return true;
    }();
    static_cast<void>(done);
}

std::string take_words() {
    std::vector<std::string> lines;
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, collect, &lines);  // innermost first
    H5Eclear2(H5E_DEFAULT);
    if (lines.empty()) return "no reason given by HDF5";
    // The cause and what HDF5 was about; the lines between repeat them.
    return lines.size() == 1 ? lines.front() : lines.front() + " (" + lines.back() + ")";
}

void refuse_newer_format(const std::string& name, const std::string& words) {
    // "bad version number for layout message", "bad superblock version number", "wrong version
    // number", "unknown version" ... depending on the part of the file.
    if (words.find("version") == std::string::npos) return;
    unsigned major = 0;
    unsigned minor = 0;
    unsigned release = 0;
    H5get_libversion(&major, &minor, &release);
    user_error(
        "{}: written in a newer version of the HDF5 file format (as HDF5 2.0 does) than this HDF5 "
        "{}.{}.{} can read, or damaged: {}; write it with h5py libver=\"v110\", or rewrite it with "
        "the newer HDF5's h5repack --high=2",
        name, major, minor, release, words);
}

void fail(const std::string& name, const char* doing, bool users_fault) {
    const std::string words = take_words();
    const std::string message = fmt::format("{}: cannot be {}: {}", name, doing, words);
    if (names_full_disk(words)) throw DiskFullError(message);
    if (users_fault || names_users_fault(words)) throw UserError(message);
    throw LibraryError(fmt::format("rank {}: HDF5: {}", process_rank(), message));
}

void give_up(const std::string& path) noexcept {
    try {
        if (::truncate(path.c_str(), 0) == 0) reserve_space(path, metadata_bytes);
    } catch (const std::exception&) {
        // The failure that brought us here is the one to tell of.
    }
    ::unlink(path.c_str());
}

hid_t file_type(H5Type type) {
    switch (type) {
        case H5Type::float32:
            return H5T_IEEE_F32LE;
        case H5Type::float64:
            return H5T_IEEE_F64LE;
        case H5Type::float16: {
            // What h5py calls float16: 1 sign, 5 exponent (bias 15), 10 mantissa bits.
            static const hid_t half = [] {
                const hid_t t = H5Tcopy(H5T_IEEE_F32LE);
                const bool ok = H5Tset_fields(t, 15, 10, 5, 0, 10) >= 0 && H5Tset_size(t, 2) >= 0 &&
                                H5Tset_ebias(t, 15) >= 0;
                return ok ? t : hid_t{-1};
            }();
            return check(half, "float16", "made as an HDF5 type");
        }
        case H5Type::uint8:
            return H5T_STD_U8LE;
        case H5Type::uint16:
            return H5T_STD_U16LE;
        case H5Type::int32:
            return H5T_STD_I32LE;
        case H5Type::int64:
            return H5T_STD_I64LE;
        case H5Type::uint32:
            return H5T_STD_U32LE;
        case H5Type::uint64:
            return H5T_STD_U64LE;
    }
    return -1;
}

}  // namespace clt::h5
