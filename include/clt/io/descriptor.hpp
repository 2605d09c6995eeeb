// A POSIX file descriptor that closes itself, and whole reads and writes on it. Failures are the
// user's (a full disk, a missing file): UserError with the file's name and the system's words.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "clt/base/types.hpp"

namespace clt {

class Descriptor {
  public:
    /// flags as for open(2); files are made with mode 0666. Throws UserError: "PATH: cannot be
    /// DOING: WORDS", also for a pipe or a device, which could wait for ever.
    /// Example: Descriptor file(path, O_RDONLY, "read");
    Descriptor(const std::string& path, int flags, const char* doing);
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor();

    int fd() const { return fd_; }
    /// Length in bytes. Throws UserError when the path is a folder.
    Index size() const;
    /// Up to `bytes` bytes from `offset` on; 0 only at the end. What fails for a moment (EIO,
    /// ESTALE, EAGAIN: network file systems) is tried again for some seconds. Throws UserError.
    Index read_some(Index offset, void* out, Index bytes) const;
    /// Exactly `bytes` bytes from `offset` on. Throws UserError when the file ends before.
    void read_at(Index offset, void* out, Index bytes) const;
    void write_all(const void* in, Index bytes) const;
    void sync() const;
    /// Closes and reports (network file systems tell of a full disk only here).
    void close();

  private:
    std::string path_;
    const char* doing_;
    int fd_ = -1;
};

/// How often this process tried a read again that had failed for a moment.
Index repeated_reads();
/// For tests: what takes the place of pread(2), and of the pauses between tries; returns what was
/// there.
struct ReadCalls {
    ssize_t (*read)(int, void*, std::size_t, off_t);
    void (*pause)(double seconds);
};
ReadCalls replace_read_calls(ReadCalls calls);

/// "PATH: cannot be DOING: words of errno".
[[noreturn]] void file_error(const std::string& path, const char* doing);

/// What a folder's fsync is for: a rename in it is durable only after it. Throws UserError.
void sync_folder_of(const std::string& path);

}  // namespace clt
