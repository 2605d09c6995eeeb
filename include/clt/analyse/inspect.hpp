// `clt inspect`: what is in a file or folder of ours, as text for people. It changes nothing.
#pragma once

#include <string>

#include "clt/comm/communicator.hpp"

namespace clt {

/// Explains an activation data set (folder), one of its chunks, a checkpoint, a run folder or a
/// safetensors file. verify: reads everything and checks it: checksums and lengths, numbers that
/// are not finite (chunk, layer, row), manifest and metadata that disagree, missing statistics.
/// The text is the same on every rank. Collective. Throws UserError when the path is none of
/// these, and with a list of all problems when it is damaged.
std::string inspect(const std::string& path, bool verify, const Communicator& communicator);

}  // namespace clt
