#include "lm/tensor_files.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "clt/io/json.hpp"

namespace clt {
namespace {

constexpr const char* single_name = "/model.safetensors";
constexpr const char* index_name = "/model.safetensors.index.json";

// Why there are no weights that can be read.
[[noreturn]] void refuse_folder(const std::string& folder) {
    const std::vector<std::string> names = names_in(folder);
    const auto first_with = [&](auto&& test) {
        const auto found = std::find_if(names.begin(), names.end(), test);
        return found == names.end() ? std::string() : *found;
    };
    const auto starts = [&](const char* start) {
        return first_with([&](const std::string& name) { return name.starts_with(start); });
    };
    const auto ends = [&](const char* end) {
        return first_with([&](const std::string& name) { return name.ends_with(end); });
    };
    if (const std::string name = starts("pytorch_model"); !name.empty())
        user_error(
            "{}: has {} but no model.safetensors: AutoModelForCausalLM.from_pretrained(\"{}\")"
            ".save_pretrained(\"{}\") of transformers writes it",
            folder, name, folder, folder);
    if (const std::string name = starts("adapter_"); !name.empty())
        user_error(
            "{}: holds an adapter ({}), not a model: merge it into its base model first (PEFT's "
            "merge_and_unload, then save_pretrained)",
            folder, name);
    if (std::find(names.begin(), names.end(), "snapshots") != names.end())
        user_error(
            "{}: is a folder of the Hugging Face cache: the model lies in one of {}/snapshots/*",
            folder, folder);
    for (const char* end : {".safetensors", ".gguf", ".h5", ".msgpack", ".ckpt", ".pt", ".pth"})
        if (const std::string name = ends(end); !name.empty())
            user_error("{}: has {} but no model.safetensors, which clt reads", folder, name);
    if (const std::string name = ends(".incomplete"); !name.empty())
        user_error("{}: has {}, a download that did not end, but no model.safetensors", folder,
                   name);
    user_error("{}{}: no such file (the language model's weights)", folder, single_name);
}

// Tensor -> shard.
JsonObject weight_map(const std::string& folder) {
    return JsonObject::read(folder + index_name).object("weight_map", "file of tensor ");
}

std::string shard_of_tensor(const JsonObject& map, const std::string& tensor) {
    std::string shard = map.text(tensor);
    // A shard lies beside the index: a path that leads elsewhere is not one.
    if (shard.find('/') != std::string::npos) map.refuse(tensor, "a file name");
    return shard;
}

}  // namespace

std::vector<std::string> tensor_file_names(const std::string& folder) {
    if (path_exists(folder + single_name)) return {folder + single_name};
    if (!path_exists(folder + index_name)) refuse_folder(folder);
    const JsonObject map = weight_map(folder);
    std::set<std::string> shards;
    for (const auto& [name, unused] : map.json().items())
        shards.insert(folder + "/" + shard_of_tensor(map, name));
    return {shards.begin(), shards.end()};
}

TensorFiles::TensorFiles(const std::string& folder) {
    // As transformers: the single file counts where there are both.
    if (path_exists(folder + single_name)) {
        source_ = folder + single_name;
        files_.emplace_back(source_);
        for (const auto& [name, entry] : files_.front().entries()) places_[name] = {0, name};
        add_aliases();
        return;
    }
    if (!path_exists(folder + index_name)) refuse_folder(folder);
    source_ = folder + index_name;
    const JsonObject map = weight_map(folder);
    std::map<std::string, std::size_t> opened;
    for (const auto& [name, unused] : map.json().items()) {
        const std::string shard = shard_of_tensor(map, name);
        const auto [place, is_new] = opened.emplace(shard, files_.size());
        if (is_new) files_.emplace_back(fmt::format("{}/{}", folder, shard));
        const SafetensorsFile& file = files_[place->second];
        if (file.entries().contains(name))
            places_[name] = {place->second, name};
        else if (!file.metadata().contains(name))
            user_error("{}: \"{}\" should be in {}, which does not have it", source_, name, shard);
    }
    add_aliases();
}

// safetensors.torch.save_model stores a tensor with two names once, and the other name in the
// header's __metadata__.
void TensorFiles::add_aliases() {
    for (std::size_t file = 0; file < files_.size(); ++file)
        for (const auto& [name, stored] : files_[file].metadata())
            if (!places_.contains(name) && files_[file].entries().contains(stored))
                places_[name] = {file, stored};
}

std::vector<std::string> TensorFiles::ending_in(const std::string& end) const {
    std::vector<std::string> names;
    for (const auto& [name, unused] : places_)
        if (name == end || name.ends_with("." + end)) names.push_back(name);
    return names;
}

std::vector<float> TensorFiles::read(const std::string& name,
                                     const std::vector<Index>& shape) const {
    const auto found = places_.find(name);
    if (found == places_.end()) user_error("{}: tensor \"{}\" is missing", source_, name);
    const SafetensorsFile& file = files_[found->second.file];
    const std::vector<Index>& actual = file.entries().at(found->second.name).shape;
    if (actual != shape)
        user_error("{}: tensor \"{}\" has the shape [{}], expected [{}] by config.json",
                   file.path(), name, fmt::join(actual, ", "), fmt::join(shape, ", "));
    return file.read(found->second.name);
}

}  // namespace clt
