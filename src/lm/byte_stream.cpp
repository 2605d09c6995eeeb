#include "lm/byte_stream.hpp"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "clt/base/error.hpp"

namespace clt {
namespace {

class PlainStream final : public ByteStream {
  public:
    explicit PlainStream(const std::string& path)
        : path_(path), file_(std::fopen(path.c_str(), "rb"), &std::fclose) {
        if (!file_) fail();
    }
    Index read(char* out, Index n) override {
        const std::size_t got = std::fread(out, 1, static_cast<std::size_t>(n), file_.get());
        if (got == 0 && std::ferror(file_.get()) != 0) fail();
        return static_cast<Index>(got);
    }

  private:
    [[noreturn]] void fail() const {
        user_error("{}: cannot be read: {}", path_, std::strerror(errno));
    }
    std::string path_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

// A decompressor between a plain stream and the reader; both formats may hold several parts, one
// after the other.
class DecodedStream : public ByteStream {
  public:
    Index read(char* out, Index n) override {
        while (true) {
            if (begin_ == end_ && !at_end_) {
                begin_ = 0;
                end_ = static_cast<std::size_t>(
                    source_.read(input_.data(), static_cast<Index>(input_.size())));
                at_end_ = end_ == 0;
            }
            if (at_end_ && !inside_part_) return 0;
            // At the end the decompressor may still hold bytes that did not fit the last time.
            const Index got = decode(out, n);
            if (got > 0) return got;
            if (at_end_ && inside_part_)
                user_error("{}: ends in the middle of its compressed data", path_);
        }
    }

  protected:
    explicit DecodedStream(const std::string& path)
        : path_(path), source_(path), input_(std::size_t{1} << 17) {}

    // Decodes from input_[begin_, end_), moves begin_, sets inside_part_; may give 0 bytes.
    virtual Index decode(char* out, Index n) = 0;
    [[noreturn]] void damaged(const char* words) const {
        user_error("{}: damaged compressed data: {}", path_, words);
    }

    std::string path_;
    PlainStream source_;
    std::vector<char> input_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    bool at_end_ = false;
    bool inside_part_ = false;
};

class GzipStream final : public DecodedStream {
  public:
    explicit GzipStream(const std::string& path) : DecodedStream(path) {
        if (inflateInit2(&state_, 15 + 16) != Z_OK)  // 32 KiB window, gzip wrapper only
            library_error("inflateInit2", Z_MEM_ERROR, "out of memory");
    }
    GzipStream(const GzipStream&) = delete;
    GzipStream& operator=(const GzipStream&) = delete;
    ~GzipStream() override { inflateEnd(&state_); }

  private:
    Index decode(char* out, Index n) override {
        inside_part_ = true;
        const Index most = std::min<Index>(n, Index{1} << 30);
        state_.next_in = reinterpret_cast<Bytef*>(input_.data() + begin_);
        state_.avail_in = static_cast<uInt>(end_ - begin_);
        state_.next_out = reinterpret_cast<Bytef*>(out);
        state_.avail_out = static_cast<uInt>(most);
        const int code = inflate(&state_, Z_NO_FLUSH);
        begin_ = end_ - state_.avail_in;
        if (code == Z_STREAM_END) {
            inside_part_ = false;
            inflateReset(&state_);
        } else if (code != Z_OK && code != Z_BUF_ERROR) {
            damaged(state_.msg != nullptr ? state_.msg : "not gzip");
        }
        return most - static_cast<Index>(state_.avail_out);
    }
    z_stream state_{};
};

class ZstdStream final : public DecodedStream {
  public:
    explicit ZstdStream(const std::string& path)
        : DecodedStream(path), state_(ZSTD_createDStream(), &ZSTD_freeDStream) {
        if (!state_) library_error("ZSTD_createDStream", 0, "out of memory");
    }

  private:
    Index decode(char* out, Index n) override {
        ZSTD_inBuffer in{input_.data(), end_, begin_};
        ZSTD_outBuffer to{out, static_cast<std::size_t>(n), 0};
        const std::size_t code = ZSTD_decompressStream(state_.get(), &to, &in);
        if (ZSTD_isError(code) != 0) damaged(ZSTD_getErrorName(code));
        begin_ = in.pos;
        inside_part_ = code != 0;
        return static_cast<Index>(to.pos);
    }
    std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> state_;
};

}  // namespace

std::unique_ptr<ByteStream> open_byte_stream(const std::string& path) {
    if (path.ends_with(".gz")) return std::make_unique<GzipStream>(path);
    if (path.ends_with(".zst")) return std::make_unique<ZstdStream>(path);
    return std::make_unique<PlainStream>(path);
}

}  // namespace clt
