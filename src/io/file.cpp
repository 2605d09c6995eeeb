#include "clt/io/file.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>

#include "clt/base/checksum.hpp"
#include "clt/base/disk_full.hpp"
#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/io/descriptor.hpp"

namespace clt {

std::string read_file(const std::string& path, Index most_bytes) {
    const Descriptor file(path, O_RDONLY, "read");
    const Index size = file.size();
    if (size > most_bytes)
        user_error("{}: has {} bytes, expected at most {}", path, size, most_bytes);
    std::string bytes(static_cast<std::size_t>(size), '\0');
    file.read_at(0, bytes.data(), static_cast<Index>(bytes.size()));
    return bytes;
}

bool path_exists(const std::string& path) {
    std::error_code code;
    const bool found = std::filesystem::exists(path, code);
    if (code) user_error("{}: cannot be read: {}", path, code.message());
    return found;
}

bool is_folder(const std::string& path) {
    std::error_code code;
    const std::filesystem::file_status status = std::filesystem::status(path, code);
    if (std::filesystem::exists(status)) return std::filesystem::is_directory(status);
    if (status.type() != std::filesystem::file_type::not_found)
        user_error("{}: cannot be read: {}", path, code.message());
    return false;
}

Index size_of_file(const std::string& path) {
    return Descriptor(path, O_RDONLY, "read").size();
}

std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    std::error_code code;
    for (std::filesystem::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code))
        names.push_back(entry->path().filename().string());
    if (code) user_error("{}: the folder cannot be read: {}", folder, code.message());
    std::sort(names.begin(), names.end());
    return names;
}

void remove_file(const std::string& path) {
    std::error_code code;
    std::filesystem::remove(path, code);
    if (code) user_error("{}: cannot be removed: {}", path, code.message());
}

std::uint64_t checksum_of_file(const std::string& path, Shard range) {
    constexpr Index word_bytes = sizeof(std::uint64_t);
    constexpr Index piece_bytes = Index{1} << 20;
    CLT_CHECK(range.begin % word_bytes == 0);
    const Descriptor file(path, O_RDONLY, "read");
    std::vector<std::byte> piece(static_cast<std::size_t>(std::min(piece_bytes, range.size())));
    std::uint64_t sum = 0;
    for (Index at = range.begin; at < range.end; at += piece_bytes) {
        const Index bytes = std::min(piece_bytes, range.end - at);
        file.read_at(at, piece.data(), bytes);
        sum +=
            checksum_of(std::span(piece).first(static_cast<std::size_t>(bytes)), at / word_bytes);
    }
    return sum;
}

Index readable_bytes(const std::string& path) {
    const Descriptor file(path, O_RDONLY, "read");
    const Index bytes = file.size();
    char first = 0;
    if (bytes > 0) file.read_at(0, &first, 1);
    return bytes;
}

std::optional<Index> free_bytes(const std::string& path) {
    struct statvfs disk {};
    if (::statvfs(path.c_str(), &disk) != 0) return std::nullopt;
    const double bytes = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    return static_cast<Index>(std::min(bytes, 9e18));
}

void write_file(const std::string& path, const std::string& bytes) {
    const std::string temporary = path + ".tmp";
    try {
        Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC, "written");
        file.write_all(bytes.data(), static_cast<Index>(bytes.size()));
        file.close();
        publish_file(temporary, path);
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
}

void reserve_space(const std::string& path, Index bytes) {
    if (bytes == 0) return;
    const Descriptor file(path, O_WRONLY, "written");
    // Setting aside does not look at the process's own limit (ulimit -f); writing meets it.
    struct rlimit limit {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        static_cast<rlim_t>(bytes) > limit.rlim_cur)
        user_error("{}: cannot be written, {:.1f} MB are needed: {} (ulimit -f)", path,
                   static_cast<double>(bytes) / 1e6, std::strerror(EFBIG));
    // Linux's own call: the POSIX one would write zeros where the file system cannot reserve.
    int result = -1;
    do result = ::fallocate(file.fd(), FALLOC_FL_KEEP_SIZE, 0, bytes);
    while (result != 0 && errno == EINTR);
    if (result == 0) return;
    int code = errno;
    if (code == EOPNOTSUPP || code == ENOSYS) {
        // A file system that cannot: what it says to be free is the next best.
        if (bytes - file.size() <= free_bytes(path).value_or(bytes)) return;
        code = ENOSPC;
    }
    std::string needed = fmt::format("{} bytes are needed", bytes);
    if (code == ENOSPC)
        if (const std::optional<Index> left = free_bytes(path)) {
            struct stat status {};
            const bool known = ::fstat(file.fd(), &status) == 0;
            const Index present = known ? Index{status.st_blocks} * 512 : 0;
            needed += fmt::format(", {} are missing", std::max<Index>(1, bytes - present - *left));
        }
    const std::string message =
        fmt::format("{}: cannot be written, {}: {}", path, needed, std::strerror(code));
    if (code == ENOSPC || code == EDQUOT) throw DiskFullError(message);
    throw UserError(message);
}

void begin_sync(const std::string& path) {
    const Descriptor file(path, O_RDONLY, "written");
    ::sync_file_range(file.fd(), 0, 0, SYNC_FILE_RANGE_WRITE);
}

void sync_file(const std::string& path) {
    Descriptor(path, O_RDONLY, "written").sync();
}

void publish_file(const std::string& from, const std::string& to) {
    sync_file(from);
    if (std::rename(from.c_str(), to.c_str()) != 0) file_error(to, "written");
    sync_folder_of(to);
}

void make_writable_folder(const std::string& path) {
    std::error_code code;
    std::filesystem::create_directories(path, code);
    if (code) user_error("{}: the folder cannot be made: {}", path, code.message());
    // access(2) is wrong for root, on read-only mounts and under quotas: only writing proves it.
    std::string probe = (std::filesystem::path(path) / ".clt-probe-XXXXXX").string();
    const int descriptor = ::mkstemp(probe.data());
    if (descriptor < 0) file_error(path, "written into");
    const bool written = ::write(descriptor, "x", 1) == 1;
    const int why = errno;
    ::close(descriptor);
    ::unlink(probe.c_str());
    if (!written) {
        errno = why;
        file_error(path, "written into");
    }
}

JsonLines::JsonLines(const std::string& path, std::optional<Index> keep_bytes,
                     const std::string& fingerprint)
    : path_(path) {
    Descriptor(path, O_WRONLY | O_CREAT, "written").close();  // refuses a pipe, which would wait
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor_ < 0) file_error(path_, "written");
    const off_t length = ::lseek(descriptor_, 0, SEEK_END);
    // A file shorter than the checkpoint remembers lost its tail with the machine: what is there
    // stays, save half a line.
    bytes_ = std::min(static_cast<Index>(length), keep_bytes.value_or(0));
    char last = '\n';
    while (bytes_ > 0 && ::pread(descriptor_, &last, 1, bytes_ - 1) == 1 && last != '\n') --bytes_;
    if (length < 0 || ::ftruncate(descriptor_, bytes_) != 0) {
        const int why = errno;
        ::close(descriptor_);
        errno = why;
        file_error(path_, "written");
    }
    std::string part(std::size_t{1} << 16, '\0');
    for (Index read = 0; read < bytes_;) {
        const ssize_t got = ::pread(descriptor_, part.data(), part.size(), read);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        fingerprint_.add(std::string_view(part).substr(0, static_cast<std::size_t>(got)));
        read += got;
    }
    if (!keep_bytes) return;
    if (bytes_ != *keep_bytes)
        log_warning("{}: {} bytes of the {} written before are there; its records are not complete",
                    path_, bytes_, *keep_bytes);
    else if (!fingerprint.empty() && fingerprint != fingerprint_.text())
        log_warning("{}: was changed since it was written; records in it may be wrong", path_);
}

JsonLines::~JsonLines() {
    ::close(descriptor_);
}

void JsonLines::write(const std::string& object) {
    const std::string line = object + '\n';
    // A full disk takes a part of the line: take it back, so that every line is whole.
    if (torn_) torn_ = ::ftruncate(descriptor_, bytes_) != 0;
    ssize_t put = -1;
    while (!torn_ && put < 0) {
        put = ::write(descriptor_, line.data(), line.size());
        if (put < 0 && errno != EINTR) break;
    }
    if (put == static_cast<ssize_t>(line.size())) {
        bytes_ += put;
        fingerprint_.add(line);
        lost_ = 0;
        return;
    }
    const int why = put < 0 ? errno : ENOSPC;
    if (put > 0) torn_ = ::ftruncate(descriptor_, bytes_) != 0;
    if (lost_++ == 0)
        log_warning("{}: cannot be written: {}; records are lost until it can", path_,
                    std::strerror(why));
}

void JsonLines::sync() {
    if (::fsync(descriptor_) != 0)
        log_warning("{}: cannot be written: {}; records may be lost", path_, std::strerror(errno));
}

}  // namespace clt
