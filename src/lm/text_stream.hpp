// Text of a file as UTF-8, whatever it is stored in. Nothing is repaired: what is not in the
// encoding that the job names is an error that says where and what to do.
#pragma once

#include <memory>
#include <string>

#include "lm/byte_stream.hpp"

namespace clt {

/// Decompressed as open_byte_stream; encoding: text.encoding. A byte order mark is skipped. Throws
/// UserError naming the file, also when it holds no text at all (a Git LFS pointer, an archive).
std::unique_ptr<ByteStream> open_text_stream(const std::string& path, const std::string& encoding);

/// Throws UserError when no converter has the name.
void check_encoding(const std::string& encoding);

}  // namespace clt
