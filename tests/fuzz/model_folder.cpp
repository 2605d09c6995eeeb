// config.json and model.safetensors.index.json of a Hugging Face folder, as two parts.
#include "fuzz.hpp"
#include "lm/model_description.hpp"
#include "lm/tensor_files.hpp"

CLT_FUZZ_TARGET(bytes) {
    static const clt::fuzz::Folder folder;
    folder.write("config.json", clt::fuzz::next_part(bytes));
    folder.write("model.safetensors.index.json", bytes);
    clt::fuzz::refusable([&] { clt::read_model_config(folder.path()); });
    clt::fuzz::refusable([&] { clt::TensorFiles files(folder.path()); });
}
