// Bytes of a file, decompressed on the way when its name ends in .gz or .zst; memory does not grow
// with the file.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "clt/base/types.hpp"

namespace clt {

class ByteStream {
  public:
    virtual ~ByteStream() = default;
    /// Up to n bytes to `out`; 0 only at the end. Throws UserError naming the file when it cannot
    /// be read, is damaged or ends early.
    virtual Index read(char* out, Index n) = 0;
};

/// A stream whose first bytes may be looked at before they are read.
class HeadedStream final : public ByteStream {
  public:
    /// Reads up to `bytes` ahead.
    HeadedStream(std::unique_ptr<ByteStream> source, Index bytes);
    std::string_view head() const { return std::string_view(head_).substr(at_); }
    Index read(char* out, Index n) override;

  private:
    std::unique_ptr<ByteStream> source_;
    std::string head_;
    std::size_t at_ = 0;
};

/// Throws UserError when the file cannot be read, is empty, or is not compressed as its name says.
std::unique_ptr<ByteStream> open_byte_stream(const std::string& path);

}  // namespace clt
