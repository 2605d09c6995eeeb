// The kinds of things `clt inspect` explains, one function each. All are collective.
#pragma once

#include <string>
#include <vector>

#include "clt/base/float16.hpp"
#include "clt/comm/communicator.hpp"

namespace clt {

/// What inspect() says: lines of text, and what is wrong.
struct Inspection {
    std::vector<std::string> lines;
    std::vector<std::string> problems;
};

Inspection inspect_dataset(const std::string& folder, bool verify, const Communicator& all);
Inspection inspect_chunk(const std::string& path, bool verify, const Communicator& all);
Inspection inspect_checkpoint_file(const std::string& path, bool verify, const Communicator& all);
Inspection inspect_run(const std::string& folder, bool verify, const Communicator& all);
Inspection inspect_safetensors(const std::string& path, bool verify, const Communicator& all);

/// Index of the first of n values that is NaN or infinite; n when there is none. Host memory.
Index first_not_finite(DType type, const void* values, Index n);

/// "1.5 GB", decimal units.
std::string bytes_text(Index bytes);
Index file_bytes(const std::string& path);
std::string file_name(const std::string& path);

}  // namespace clt
