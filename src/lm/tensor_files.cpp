#include "lm/tensor_files.hpp"

#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"
#include "clt/io/json.hpp"

namespace clt {

TensorFiles::TensorFiles(const std::string& folder) {
    const std::string single = folder + "/model.safetensors";
    const std::string index = folder + "/model.safetensors.index.json";
    if (std::filesystem::exists(single) || !std::filesystem::exists(index)) {
        source_ = single;
        files_.emplace_back(single);
        for (const auto& [name, entry] : files_.front().entries()) files_of_[name] = 0;
        return;
    }
    source_ = index;
    const JsonObject map = JsonObject::read(index).object("weight_map", "file of tensor ");
    std::map<std::string, std::size_t> opened;
    for (const auto& [name, unused] : map.json().items()) {
        const std::string shard = map.text(name);
        // A shard lies beside the index: a path that leads elsewhere is not one.
        if (shard.find('/') != std::string::npos) map.refuse(name, "a file name");
        const auto [place, is_new] = opened.emplace(shard, files_.size());
        if (is_new) files_.emplace_back(fmt::format("{}/{}", folder, shard));
        const SafetensorsFile& opened_file = files_[place->second];
        if (!opened_file.entries().contains(name))
            user_error("{}: \"{}\" should be in {}, which does not have it", index, name, shard);
        files_of_[name] = place->second;
    }
}

std::vector<float> TensorFiles::read(const std::string& name, const std::vector<Index>& shape) {
    const auto found = files_of_.find(name);
    if (found == files_of_.end()) user_error("{}: tensor \"{}\" is missing", source_, name);
    const SafetensorsFile& file = files_[found->second];
    const std::vector<Index>& actual = file.entries().at(name).shape;
    if (actual != shape)
        user_error("{}: tensor \"{}\" has the shape [{}], expected [{}] by config.json",
                   file.path(), name, fmt::join(actual, ", "), fmt::join(shape, ", "));
    return file.read(name);
}

}  // namespace clt
