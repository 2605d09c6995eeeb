// safetensors: 8-byte little-endian header length, JSON header, raw tensors. Read by offset, so a
// rank touches only the bytes it needs. Format: huggingface/safetensors README.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "clt/base/float16.hpp"

namespace clt {

struct SafetensorsEntry {
    std::string dtype;  // "F32", "F16", "BF16", "I64", ...
    std::vector<Index> shape;
    Index begin = 0;  // bytes from the start of the file
    Index end = 0;
};

class SafetensorsFile {
  public:
    /// Throws UserError naming the file: missing, header cut, not JSON, tensor beyond the end of
    /// the file, offsets that overlap or leave holes, sizes that disagree with the shape.
    explicit SafetensorsFile(const std::string& path);

    const std::string& path() const { return path_; }
    const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    /// The whole tensor as float32 from F64, F32, F16 or BF16. Throws UserError naming file and
    /// tensor.
    std::vector<float> read(const std::string& name) const;

  private:
    std::string path_;
    std::map<std::string, SafetensorsEntry> entries_;
    std::map<std::string, std::string> metadata_;
};

}  // namespace clt
