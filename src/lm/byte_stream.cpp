#include "lm/byte_stream.hpp"

#include <fcntl.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "clt/base/error.hpp"
#include "clt/base/utf8.hpp"
#include "clt/io/content.hpp"
#include "clt/io/descriptor.hpp"

namespace clt {
namespace {

using namespace std::string_view_literals;

class FileStream final : public ByteStream {
  public:
    explicit FileStream(const std::string& path) : file_(path, O_RDONLY, "read") {}
    Index read(char* out, Index n) override {
        const Index got = file_.read_some(at_, out, n);
        at_ += got;
        return got;
    }

  private:
    Descriptor file_;
    Index at_ = 0;
};

// A decompressor between a file and the reader; both formats may hold several parts, one after the
// other.
class DecodedStream : public ByteStream {
  public:
    Index read(char* out, Index n) override {
        while (true) {
            if (begin_ == end_ && !at_end_) {
                before_ += static_cast<Index>(std::exchange(begin_, 0));
                end_ = static_cast<std::size_t>(
                    source_->read(input_.data(), static_cast<Index>(input_.size())));
                at_end_ = end_ == 0;
            }
            if (at_end_ && !inside_part_) return 0;
            if (!inside_part_ && passes_padding()) continue;
            // At the end the decompressor may still hold bytes that did not fit the last time.
            const Index got = decode(out, n);
            if (got > 0) return got;
            if (at_end_ && inside_part_)
                user_error(
                    "{}: ends after {} bytes, in the middle of its compressed data: cut, or not "
                    "fetched whole",
                    path_, place());
        }
    }

  protected:
    DecodedStream(const std::string& path, std::unique_ptr<ByteStream> source)
        : path_(path), source_(std::move(source)), input_(std::size_t{1} << 17) {}

    // Decodes from input_[begin_, end_), moves begin_, sets inside_part_; may give 0 bytes.
    virtual Index decode(char* out, Index n) = 0;
    // Bytes of the file that were decoded.
    Index place() const { return before_ + static_cast<Index>(begin_); }

    std::string path_;
    std::unique_ptr<ByteStream> source_;
    std::vector<char> input_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    bool at_end_ = false;
    bool inside_part_ = false;
    bool any_part_ = false;

  private:
    // Behind a part: zeros fill up blocks of tapes and of some writers.
    bool passes_padding() {
        if (!any_part_ || begin_ == end_ || input_[begin_] != '\0') return false;
        while (begin_ < end_ && input_[begin_] == '\0') ++begin_;
        return true;
    }
    Index before_ = 0;  // bytes of the file before input_
};

class GzipStream final : public DecodedStream {
  public:
    GzipStream(const std::string& path, std::unique_ptr<ByteStream> source)
        : DecodedStream(path, std::move(source)) {
        if (inflateInit2(&state_, 15 + 16) != Z_OK)  // 32 KiB window, gzip wrapper only
            library_error("inflateInit2", Z_MEM_ERROR, "out of memory");
    }
    GzipStream(const GzipStream&) = delete;
    GzipStream& operator=(const GzipStream&) = delete;
    ~GzipStream() override { inflateEnd(&state_); }

  private:
    Index decode(char* out, Index n) override {
        const bool first_of_part = !std::exchange(inside_part_, true);
        const Index most = std::min<Index>(n, Index{1} << 30);
        state_.next_in = reinterpret_cast<Bytef*>(input_.data() + begin_);
        state_.avail_in = static_cast<uInt>(end_ - begin_);
        state_.next_out = reinterpret_cast<Bytef*>(out);
        state_.avail_out = static_cast<uInt>(most);
        const int code = inflate(&state_, Z_NO_FLUSH);
        const Index at = place();
        begin_ = end_ - state_.avail_in;
        if (code == Z_STREAM_END) {
            inside_part_ = false;
            any_part_ = true;
            inflateReset(&state_);
        } else if (code != Z_OK && code != Z_BUF_ERROR) {
            if (any_part_ && first_of_part)
                user_error(
                    "{}: its gzip data end at byte {}, and something else follows: cut it off "
                    "(head -c {})",
                    path_, at, at);
            user_error("{}: damaged gzip data near byte {}: {}", path_, place(),
                       state_.msg != nullptr ? state_.msg : "no words");
        }
        return most - static_cast<Index>(state_.avail_out);
    }
    z_stream state_{};
};

class ZstdStream final : public DecodedStream {
  public:
    ZstdStream(const std::string& path, std::unique_ptr<ByteStream> source)
        : DecodedStream(path, std::move(source)), state_(ZSTD_createDStream(), &ZSTD_freeDStream) {
        if (!state_) library_error("ZSTD_createDStream", 0, "out of memory");
        // Windows up to 2 GiB (zstd --long=31, as the Reddit dumps have): the library's own limit
        // of 128 MiB is against strangers' streams, these are the user's files.
        ZSTD_DCtx_setParameter(state_.get(), ZSTD_d_windowLogMax, 31);
    }

  private:
    Index decode(char* out, Index n) override {
        ZSTD_inBuffer in{input_.data(), end_, begin_};
        ZSTD_outBuffer to{out, static_cast<std::size_t>(n), 0};
        const bool first_of_part = !inside_part_;
        const std::size_t code = ZSTD_decompressStream(state_.get(), &to, &in);
        if (ZSTD_isError(code) != 0) {
            if (any_part_ && first_of_part)
                user_error(
                    "{}: its zstd data end at byte {}, and something else follows: cut it off "
                    "(head -c {})",
                    path_, place(), place());
            // In the library's words: a wrong checksum, an unknown dictionary, a broken block.
            user_error("{}: zstd data that cannot be read, near byte {}: {}", path_, place(),
                       ZSTD_getErrorName(code));
        }
        begin_ = in.pos;
        inside_part_ = code != 0;
        any_part_ = true;
        return static_cast<Index>(to.pos);
    }
    std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> state_;
};

// The name says `suffix`, the first bytes say something else.
[[noreturn]] void refuse_packing(const std::string& path, const char* packing,
                                 std::string_view suffix, std::string_view head) {
    const std::string bare = path.substr(0, path.size() - suffix.size());
    if (const auto content = content_of(head))
        user_error("{}: is not {} but {}", path, packing, sentence_of(*content, bare));
    // A character may be cut at the end of the head.
    if (valid_utf8_prefix(head) + 4 > head.size())
        user_error("{}: is not {} but plain text: name it {}", path, packing, bare);
    user_error("{}: is not {}, though its name ends in {}", path, packing, suffix);
}

}  // namespace

HeadedStream::HeadedStream(std::unique_ptr<ByteStream> source, Index bytes)
    : source_(std::move(source)), head_(static_cast<std::size_t>(bytes), '\0') {
    std::size_t have = 0;
    while (have < head_.size()) {
        const Index got =
            source_->read(head_.data() + have, static_cast<Index>(head_.size() - have));
        if (got == 0) break;
        have += static_cast<std::size_t>(got);
    }
    head_.resize(have);
}

Index HeadedStream::read(char* out, Index n) {
    const std::string_view rest = head();
    if (rest.empty()) return source_->read(out, n);
    const std::size_t count = std::min(rest.size(), static_cast<std::size_t>(n));
    std::memcpy(out, rest.data(), count);
    at_ += count;
    return static_cast<Index>(count);
}

std::unique_ptr<ByteStream> open_byte_stream(const std::string& path) {
    auto file = std::make_unique<HeadedStream>(std::make_unique<FileStream>(path), content_bytes);
    const std::string_view head = file->head();
    if (head.empty()) user_error("{}: is empty (0 bytes): it was not written or not fetched", path);
    if (path.ends_with(".gz")) {
        if (!head.starts_with("\x1F\x8B"sv)) refuse_packing(path, "gzip data", ".gz", head);
        return std::make_unique<GzipStream>(path, std::move(file));
    }
    if (path.ends_with(".zst")) {
        // A frame, or one to be skipped (0x184D2A50 to 0x184D2A5F) before it.
        const bool skipped = head.size() > 3 && (head[0] & 0xF0) == 0x50 &&
                             head.substr(1).starts_with("\x2A\x4D\x18"sv);
        if (!skipped && !head.starts_with("\x28\xB5\x2F\xFD"sv))
            refuse_packing(path, "zstd data", ".zst", head);
        return std::make_unique<ZstdStream>(path, std::move(file));
    }
    return file;
}

}  // namespace clt
