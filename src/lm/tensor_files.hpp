// The tensors of a Hugging Face folder, whether in one safetensors file or in shards, under the
// names that transformers finds them by.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "clt/io/safetensors.hpp"

namespace clt {

class TensorFiles {
  public:
    /// model.safetensors, or the shards that model.safetensors.index.json names. Throws UserError;
    /// for weights in another form it says how to convert them.
    explicit TensorFiles(const std::string& folder);

    bool contains(const std::string& name) const { return places_.contains(name); }
    /// Names that end in ".`end`", or are `end`; ascending.
    std::vector<std::string> ending_in(const std::string& end) const;
    /// As float32. Throws UserError when the tensor is missing or of another shape.
    std::vector<float> read(const std::string& name, const std::vector<Index>& shape) const;
    /// The file to name in messages about missing tensors.
    const std::string& source() const { return source_; }

  private:
    struct Place {
        std::size_t file = 0;
        std::string name;  // in it: of two names of one tensor, safetensors stores one
    };
    void add_aliases();

    std::string source_;
    std::vector<SafetensorsFile> files_;
    std::map<std::string, Place> places_;
};

/// The files that TensorFiles reads, without opening the weights.
std::vector<std::string> tensor_file_names(const std::string& folder);

}  // namespace clt
