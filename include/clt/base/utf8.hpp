// UTF-8 as byte-level tokenizers need it: repair of broken text, code points to bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace clt {

/// Length of the longest prefix that is valid UTF-8 (no surrogates, no overlong forms).
std::size_t valid_utf8_prefix(std::string_view text);
/// Bytes of the character that begins `text` (not empty); 0: it is not valid UTF-8.
std::size_t utf8_length(std::string_view text);
/// Whether `tail` (not empty) is the beginning of a character whose end is missing.
bool utf8_cut(std::string_view tail);
/// Every maximal broken part becomes U+FFFD, as Python's bytes.decode(errors="replace") and the
/// Unicode Standard, section 3.9, table 3-8.
std::string repair_utf8(std::string_view text);

void append_utf8(std::uint32_t code_point, std::string& out);
/// The code point at text[at] (valid UTF-8); `at` moves behind it.
std::uint32_t next_code_point(std::string_view text, std::size_t& at);

}  // namespace clt
