#include "io/descriptor.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "clt/base/error.hpp"
#include "clt/base/progress.hpp"

namespace clt {
namespace {

// Linux transfers at most 2^31 - 4096 bytes a call.
constexpr Index max_transfer = Index{1} << 30;

}  // namespace

void file_error(const std::string& path, const char* doing) {
    const int code = errno;
    user_error("{}: cannot be {}: {}", path, doing, std::strerror(code));
}

Descriptor::Descriptor(const std::string& path, int flags, const char* doing)
    : path_(path), doing_(doing) {
    do fd_ = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
    while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) file_error(path_, doing_);
}

Descriptor::~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
}

Index Descriptor::size() const {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) file_error(path_, doing_);
    if (S_ISDIR(status.st_mode)) {
        errno = EISDIR;
        file_error(path_, doing_);
    }
    return static_cast<Index>(status.st_size);
}

void Descriptor::read_at(Index offset, void* out, Index bytes) const {
    auto* to = static_cast<std::byte*>(out);
    for (Index done = 0; done < bytes;) {
        const auto part = static_cast<std::size_t>(std::min(max_transfer, bytes - done));
        const auto got = ::pread(fd_, to + done, part, offset + done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) file_error(path_, doing_);
        if (got == 0)
            user_error("{}: ends after {} bytes, expected at least {}", path_, offset + done,
                       offset + bytes);
        done += got;
        note_progress();
    }
}

void Descriptor::write_all(const void* in, Index bytes) const {
    const auto* from = static_cast<const std::byte*>(in);
    for (Index done = 0; done < bytes;) {
        const auto part = static_cast<std::size_t>(std::min(max_transfer, bytes - done));
        const auto put = ::write(fd_, from + done, part);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) file_error(path_, doing_);
        done += put;
        note_progress();
    }
}

void Descriptor::sync() const {
    if (::fsync(fd_) != 0) file_error(path_, doing_);
}

void Descriptor::close() {
    if (::close(std::exchange(fd_, -1)) != 0) file_error(path_, doing_);
}

void sync_folder_of(const std::string& path) {
    const std::string folder = std::filesystem::path(path).parent_path().string();
    const Descriptor descriptor(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY, "written");
    // Some network file systems do not offer fsync of a folder; their renames are durable by
    // themselves.
    if (::fsync(descriptor.fd()) != 0 && errno != EINVAL && errno != EROFS)
        file_error(folder, "written");
}

}  // namespace clt
