// What the fuzz targets share: a folder for their files, and the one exception that bad input may
// end with. A target is a parser that is handed any bytes: a crash, a hang, 2 GB of memory or
// another exception is a finding.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

#include "clt/base/error.hpp"

namespace clt::fuzz {

/// Files of one process, in memory where the system has /dev/shm; removed at exit, left after a
/// finding.
class Folder {
  public:
    Folder() {
        const bool memory = std::filesystem::is_directory("/dev/shm");
        std::string pattern = memory ? "/dev/shm/clt-fuzz-XXXXXX" : "/tmp/clt-fuzz-XXXXXX";
        if (::mkdtemp(pattern.data()) == nullptr) std::abort();
        path_ = pattern;
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    const std::string& path() const { return path_; }

    /// Writes a file and returns its path.
    std::string write(const std::string& name, std::string_view bytes) const {
        std::string path = path_ + "/" + name;
        std::FILE* file = std::fopen(path.c_str(), "wb");
        if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() ||
            std::fclose(file) != 0)
            std::abort();
        return path;
    }

  private:
    std::string path_;
};

/// Runs read(), which may refuse what it gets.
template <class Read>
void refusable(Read&& read) {
    try {
        read();
    } catch (const UserError&) {
    }
}

inline std::string_view view(const std::uint8_t* data, std::size_t size) {
    return {reinterpret_cast<const char*>(data), size};
}

/// The bytes up to the next line "---", which they lose: a corpus file holds several parts.
inline std::string_view next_part(std::string_view& bytes) {
    constexpr std::string_view mark = "\n---\n";
    const std::size_t end = bytes.find(mark);
    const std::string_view part = bytes.substr(0, end);
    bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + mark.size());
    return part;
}

}  // namespace clt::fuzz

/// The body of a target over `bytes` (std::string_view): CLT_FUZZ_TARGET(bytes) { read(bytes); }
#define CLT_FUZZ_TARGET(bytes)                                                          \
    static void target(std::string_view bytes);                                         \
    extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { \
        target(clt::fuzz::view(data, size));                                            \
        return 0;                                                                       \
    }                                                                                   \
    static void target(std::string_view bytes)
