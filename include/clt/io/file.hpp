// Small files, written whole or not at all: to a temporary name beside the target, fsync, rename,
// fsync of the folder. Not collective; usually rank 0 calls and Communicator::together agrees.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "clt/base/checksum.hpp"
#include "clt/base/types.hpp"

namespace clt {

/// Throws UserError that names the file and says why (missing, a folder, no permission, larger than
/// most_bytes).
std::string read_file(const std::string& path,
                      Index most_bytes = std::numeric_limits<Index>::max());
/// As std::filesystem has them; its exceptions (a folder without permission, a loop of links) are
/// UserErrors that name the path.
bool path_exists(const std::string& path);
bool is_folder(const std::string& path);
Index size_of_file(const std::string& path);
/// Sorted.
std::vector<std::string> names_in(const std::string& folder);
/// Does nothing when there is none.
void remove_file(const std::string& path);

/// checksum_of the bytes [range) of a file; range.begin is a multiple of 8, so that parts may be
/// summed. Throws UserError when the file ends before.
std::uint64_t checksum_of_file(const std::string& path, Shard range);
/// Length of a file that the system lets us open and read. Throws UserError otherwise, naming the
/// file and why, so that a failure behind it is the content's.
Index readable_bytes(const std::string& path);
/// What the disk of an existing folder or file has left for us; nothing where that is not known.
std::optional<Index> free_bytes(const std::string& path);
/// Replaces `path` atomically. Throws UserError naming the file and the cause (full disk, no
/// permission).
void write_file(const std::string& path, const std::string& bytes);
/// fsync of `from`, rename to `to`, fsync of the folder. Throws UserError.
void publish_file(const std::string& from, const std::string& to);
/// Sets disk space of `bytes` aside for an existing file, whose length stays: a full disk shows
/// here and not in the middle of writing. Does nothing on file systems that cannot. Throws
/// DiskFullError that says how many bytes are missing, else UserError.
void reserve_space(const std::string& path, Index bytes);
/// Tells the system to begin moving what was written to the disk, and does not wait: a later
/// sync_file then finds most of it there. Failures show in that sync_file.
void begin_sync(const std::string& path);
/// fsync. On a network file system every host that wrote calls it. Throws UserError.
void sync_file(const std::string& path);
/// Makes the folder and its parents and proves that a file can be written there. Throws UserError.
void make_writable_folder(const std::string& path);

/// Appends lines of JSON (metrics.jsonl); a line is one write call, so a reader never sees half of
/// one. A line that cannot be written (full disk) never ends a run: it is lost and counted, with
/// one warning, and the next one is tried again.
class JsonLines {
  public:
    /// keep_bytes: what stays of an existing file (a resumed run cuts what came after its
    /// checkpoint); nothing given: starts anew. A last line that is not whole is cut off.
    /// fingerprint: of those bytes, as fingerprint() gave it; empty: not known. A file that is not
    /// what it was is warned of and goes on. Throws UserError.
    explicit JsonLines(const std::string& path, std::optional<Index> keep_bytes = std::nullopt,
                       const std::string& fingerprint = "");
    JsonLines(const JsonLines&) = delete;
    JsonLines& operator=(const JsonLines&) = delete;
    ~JsonLines();
    void write(const std::string& object);
    /// fsync: what bytes() counts is on the disk, before a checkpoint says so. A failure is warned
    /// of.
    void sync();
    /// Of whole lines.
    Index bytes() const { return bytes_; }
    std::string fingerprint() const { return fingerprint_.text(); }
    /// Lines lost since the last one that was written.
    Index lost() const { return lost_; }

  private:
    int descriptor_ = -1;
    Index bytes_ = 0;
    Fingerprint fingerprint_;  // of bytes_
    Index lost_ = 0;
    bool torn_ = false;  // the file may be longer than bytes_
    std::string path_;
};

}  // namespace clt
