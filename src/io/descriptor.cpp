#include "clt/io/descriptor.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/base/progress.hpp"

namespace clt {
namespace {

// Linux transfers at most 2^31 - 4096 bytes a call.
constexpr Index max_transfer = Index{1} << 30;

// Servers that restart and networks that lose a link take some seconds: pauses of 0.05, 0.2, 0.8,
// 3.2 s.
constexpr int most_tries = 5;
constexpr double first_pause_s = 0.05;

void pause_s(double seconds) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

ReadCalls read_calls{&::pread, &pause_s};
std::atomic<Index> repeated{0};

bool passes_with_time(int code) {
    return code == EIO || code == ESTALE || code == EAGAIN;
}

// A stale handle stays stale: the same number gets a new one.
void open_anew(const std::string& path, int fd) {
    const int fresh = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fresh < 0) return;
    ::dup3(fresh, fd, O_CLOEXEC);
    ::close(fresh);
}

const char* kind_of(mode_t mode) {
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

}  // namespace

Index repeated_reads() {
    return repeated;
}

ReadCalls replace_read_calls(ReadCalls calls) {
    return std::exchange(read_calls, calls);
}

void file_error(const std::string& path, const char* doing) {
    const int code = errno;
    user_error("{}: cannot be {}: {}", path, doing, std::strerror(code));
}

Descriptor::Descriptor(const std::string& path, int flags, const char* doing)
    : path_(path), doing_(doing) {
    // Without O_NONBLOCK the call itself would wait for a pipe's other end.
    double pause = first_pause_s;
    for (int tries = 1;; ++tries) {
        do fd_ = ::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0666);
        while (fd_ < 0 && errno == EINTR);
        if (fd_ >= 0 || (errno != EIO && errno != ESTALE) || tries == most_tries) break;
        ++repeated;
        read_calls.pause(std::exchange(pause, 4 * pause));
    }
    if (fd_ < 0 && errno == ENXIO) user_error("{}: is a pipe or a device, expected a file", path_);
    if (fd_ < 0) file_error(path_, doing_);
    struct stat status {};
    const bool known = ::fstat(fd_, &status) == 0;
    if (known && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return;
    const int why = errno;
    ::close(std::exchange(fd_, -1));  // no destructor runs behind a constructor that throws
    errno = why;
    if (!known) file_error(path_, doing_);
    user_error("{}: is {}, expected a file", path_, kind_of(status.st_mode));
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

Index Descriptor::read_some(Index offset, void* out, Index bytes) const {
    const auto part = static_cast<std::size_t>(std::min(max_transfer, bytes));
    double pause = first_pause_s;
    for (int tries = 1;;) {
        const ssize_t got = read_calls.read(fd_, out, part, offset);
        if (got >= 0) return got;
        if (errno == EINTR) continue;
        if (!passes_with_time(errno) || tries++ == most_tries) file_error(path_, doing_);
        const int code = errno;
        log_here(fmt::format("warning: {}: reading at byte {} failed ({}), trying again", path_,
                             offset, std::strerror(code)));
        ++repeated;
        read_calls.pause(std::exchange(pause, 4 * pause));
        if (code == ESTALE) open_anew(path_, fd_);
    }
}

void Descriptor::read_at(Index offset, void* out, Index bytes) const {
    auto* to = static_cast<std::byte*>(out);
    for (Index done = 0; done < bytes;) {
        const Index got = read_some(offset + done, to + done, bytes - done);
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
