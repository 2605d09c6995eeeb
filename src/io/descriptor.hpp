// A POSIX file descriptor that closes itself, and whole reads and writes on it. Failures are the
// user's (a full disk, a missing file): UserError with the file's name and the system's words.
#pragma once

#include <cstddef>
#include <string>

#include "clt/base/types.hpp"

namespace clt {

class Descriptor {
  public:
    /// flags as for open(2); files are made with mode 0666. Throws UserError: "PATH: cannot be
    /// DOING: WORDS". Example: Descriptor file(path, O_RDONLY, "read");
    Descriptor(const std::string& path, int flags, const char* doing);
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor();

    int fd() const { return fd_; }
    /// Length in bytes. Throws UserError when the path is a folder.
    Index size() const;
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

/// "PATH: cannot be DOING: words of errno".
[[noreturn]] void file_error(const std::string& path, const char* doing);

/// What a folder's fsync is for: a rename in it is durable only after it. Throws UserError.
void sync_folder_of(const std::string& path);

}  // namespace clt
