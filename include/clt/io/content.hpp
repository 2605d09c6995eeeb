// What a file holds when it is not what its name says, in words: the sentence that helps is "is a
// Git LFS pointer", not "not a JSON object".
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "clt/base/types.hpp"

namespace clt {

struct Content {
    std::string what;    // "gzip data", "a Git LFS pointer"
    std::string suffix;  // what the name of such a file ends in, for kinds that clt reads by name
    std::string cure;    // what to do about it; may be empty
};

/// How many of a file's first bytes are looked at.
inline constexpr Index content_bytes = 4096;

/// Of a file's first bytes; nothing when they are none of the kinds known. least_bytes: shorter
/// signatures do not count (two bytes say little about a file of binary numbers).
std::optional<Content> content_of(std::string_view head, std::size_t least_bytes = 2);

/// "gzip data: name it BARE.gz", or with the cure. bare: the file's name without what it does not
/// hold.
std::string sentence_of(const Content& content, const std::string& bare);

}  // namespace clt
