// What a file holds when it is not what its name says, in words: the sentence that helps is "is a
// Git LFS pointer", not "not a JSON object".
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace clt {

/// Of the first bytes (some hundreds) of a file: "a Git LFS pointer: fetch the file itself with
/// `git lfs pull`", "gzip data", "UTF-16 text", ...; nothing when they are none of the kinds known.
std::optional<std::string> content_kind(std::string_view head);

}  // namespace clt
