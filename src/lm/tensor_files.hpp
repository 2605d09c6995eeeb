// The tensors of a Hugging Face folder, whether in one safetensors file or in shards.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "clt/io/safetensors.hpp"

namespace clt {

class TensorFiles {
  public:
    /// model.safetensors, or the shards that model.safetensors.index.json names. Throws UserError.
    explicit TensorFiles(const std::string& folder);

    bool contains(const std::string& name) const { return files_of_.contains(name); }
    /// As float32. Throws UserError when the tensor is missing or of another shape.
    std::vector<float> read(const std::string& name, const std::vector<Index>& shape);
    /// The file to name in messages about missing tensors.
    const std::string& source() const { return source_; }

  private:
    std::string source_;
    std::vector<SafetensorsFile> files_;
    std::map<std::string, std::size_t> files_of_;  // tensor -> place in files_
};

}  // namespace clt
