// Pre-tokenised text: NumPy arrays and raw little-endian ids.
#pragma once

#include "lm/documents.hpp"

namespace clt {

std::unique_ptr<DocumentSource> open_token_file(const std::string& path, const TextConfig& config,
                                                Index vocabulary);

}  // namespace clt
