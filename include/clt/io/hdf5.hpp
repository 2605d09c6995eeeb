// Parallel HDF5 behind move-only handles: files of 2D arrays, read and written by hyperslab of
// rows. A file opened with a communicator is collective: every call on it and its datasets is made
// by all ranks, also with an empty range; ranks agree on failure inside, so all of them throw or
// none does. The communicator must outlive the file and its datasets. Element types are never
// converted by HDF5 (it would silently leave collective I/O): read the native type, convert with
// to_float. The library is not thread-safe: one thread at a time uses HDF5: while
// sources or asynchronous checkpoints are under way that is Workers::io.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "clt/base/float16.hpp"
#include "clt/comm/communicator.hpp"

namespace clt {

enum class H5Type { float32, float64, float16, uint8, uint16, int32, int64, uint32, uint64 };
Index size_of(H5Type type);

/// What an H5Handle does when an exception unwinds through it.
enum class H5Unwind {
    close,
    /// Leave it open: closing a parallel file is collective and the other ranks may be elsewhere
    /// (as Communicator and MpiSession do).
    abandon
};

/// An HDF5 identifier and the function that closes it.
class H5Handle {
  public:
    using Close = int (*)(std::int64_t);
    H5Handle() = default;
    H5Handle(std::int64_t id, Close function, H5Unwind unwind = H5Unwind::close)
        : id_(id), close_(function), unwind_(unwind) {}
    H5Handle(H5Handle&& other) noexcept;
    H5Handle& operator=(H5Handle&& other) noexcept;
    ~H5Handle();
    std::int64_t id() const { return id_; }
    /// Closes now; throws UserError for a full disk (which may show only here), else LibraryError.
    /// name: what the message calls it.
    void close(const std::string& name = "an HDF5 object");

  private:
    std::int64_t id_ = -1;
    Close close_ = nullptr;
    H5Unwind unwind_ = H5Unwind::close;
};

class H5Dataset {
  public:
    H5Type type() const { return type_; }
    Index rows() const { return rows_; }
    /// Product of all dimensions but the first.
    Index cols() const { return cols_; }
    /// "FILE:/DATASET", for messages.
    const std::string& name() const { return name_; }
    /// Rows of an HDF5 chunk, of an array that was created; 0: contiguous.
    Index chunk_rows() const { return chunk_rows_; }

    /// Rows [range.begin, range.end), all columns, native type, packed. Collective when the file
    /// is. Throws UserError naming file and dataset when the content cannot be read (a corrupt
    /// compressed chunk).
    void read(Shard range, void* out) const;
    /// Throws UserError when the disk is full, else LibraryError; the file is then worthless (it
    /// has been emptied) and can only be closed and removed.
    void write(Shard range, const void* in);
    /// One HDF5 chunk of an array created with gzip, as deflate() made it of chunk_rows() rows (the
    /// last chunk filled up). For a file without communicator. Throws as write does.
    void write_deflated(Index first_row, std::span<const std::byte> bytes);
    /// As H5File's, an attribute of this array.
    void write_text(const std::string& name, const std::string& text);
    std::optional<std::string> read_text(const std::string& name) const;
    /// A checksum of the first and last 4 KiB of its stored bytes and of its stored size. For a
    /// file without communicator.
    std::uint64_t sample() const;
    /// True when the last read or write on this rank really was collective; always true where the
    /// communicator has one rank, which needs no MPI-IO.
    bool last_was_collective() const { return collective_; }

  private:
    friend class H5File;
    void transfer(bool writes, Shard range, void* data) const;

    std::weak_ptr<H5Handle> file_;  // given up when a write fails
    // This process's own: for an array whose elements lie in other files, which HDF5 does not read
    // in parallel. It must outlive handle_.
    std::shared_ptr<H5Handle> own_file_;
    H5Handle handle_;
    std::string path_;
    std::string name_;  // file and dataset, for messages
    H5Type type_ = H5Type::float32;
    Index rows_ = 0;
    Index cols_ = 0;
    Index chunk_rows_ = 0;
    const Communicator* communicator_ = nullptr;
    mutable bool collective_ = false;
};

class H5File {
  public:
    /// communicator null: this process alone. Throws UserError that names the file when it is
    /// missing, not HDF5 or truncated. Collective over the communicator.
    static H5File open(const std::string& path, const Communicator* communicator = nullptr);
    /// Truncates; superblock version 3 (libver latest). Collective. Throws UserError (no
    /// permission, full disk).
    static H5File create(const std::string& path, const Communicator* communicator = nullptr);

    const std::string& path() const { return path_; }
    bool has(const std::string& name) const;
    /// Names of a group's members, in HDF5's order.
    std::vector<std::string> children(const std::string& group = "/") const;
    /// Throws UserError naming file and dataset when it is missing, of a type not in H5Type, not
    /// wholly there (never written, cut), or compressed by a filter that this HDF5 lacks: what is
    /// opened can be read.
    H5Dataset dataset(const std::string& name) const;
    /// Parent groups are made. cols == 0: one dimension. chunk_rows == 0: contiguous. Disk space is
    /// set aside at once, so a full disk shows here (UserError) where the file system can do that;
    /// with gzip (a deflate level, 0: none) the caller calls set_aside, and H5Dataset::
    /// write_deflated. Collective.
    H5Dataset create_dataset(const std::string& name, H5Type type, Index rows, Index cols,
                             Index chunk_rows = 0, int gzip = 0);
    /// A UTF-8 string attribute (fixed length) of the root group. Collective.
    void write_text(const std::string& name, const std::string& text);
    std::optional<std::string> read_text(const std::string& name) const;
    /// Flushes and closes, also what is still open in it. Throws UserError when the disk is full,
    /// else LibraryError. Collective.
    void close();

    /// Sets disk space aside for `bytes` of array content to come, in at most `pieces` places.
    /// Throws UserError when it is not there. Collective.
    void set_aside(Index bytes, Index pieces = 1);

  private:
    std::shared_ptr<H5Handle> handle_ = std::make_shared<H5Handle>();
    std::string path_;
    const Communicator* communicator_ = nullptr;
    Index bytes_set_aside_ = 0;  // for what was created so far
};

/// As HDF5's gzip filter stores it (zlib format). Throws InternalError.
std::vector<std::byte> deflate(std::span<const std::byte> bytes, int level);

}  // namespace clt
