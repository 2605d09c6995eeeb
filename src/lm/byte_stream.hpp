// Bytes of a file, decompressed on the way when its name ends in .gz or .zst; memory does not grow
// with the file.
#pragma once

#include <memory>
#include <string>

#include "clt/base/types.hpp"

namespace clt {

class ByteStream {
  public:
    virtual ~ByteStream() = default;
    /// Up to n bytes to `out`; 0 only at the end. Throws UserError naming the file when it cannot
    /// be read, is damaged or ends early.
    virtual Index read(char* out, Index n) = 0;
};

std::unique_ptr<ByteStream> open_byte_stream(const std::string& path);

}  // namespace clt
