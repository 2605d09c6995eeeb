// What is particular to a family of language models, as data: keys of config.json, tensor names,
// orientation of weights. A further family adds a description, and fields where it differs in kind.
#pragma once

#include <string>
#include <vector>

#include "lm/transformer.hpp"

namespace clt {

struct ModelDescription {
    std::string family;  // model_type

    // Keys of config.json.
    std::string layers, d_model, heads, d_mlp, positions, norm_epsilon, activation;
    Index mlp_ratio = 4;                    // d_mlp / d_model when its key is absent or null
    std::string default_activation;         // when its key is absent
    std::vector<std::string> must_be_true;  // switches of arithmetic that is not built
    std::vector<std::string> must_be_false;

    // Tensors. Those of the model proper may carry one of the prefixes; "{}" is the layer.
    std::vector<std::string> prefixes;
    std::string token_rows, position_rows, final_norm;
    std::string attention_norm, qkv, attention_out, mlp_norm, mlp_up, mlp_down;
    std::string unembedding;     // full name
    bool weights_in_out = true;  // y = x W + b with W[in, out]; else W[out, in]
};

/// Throws UserError that lists the families there are.
const ModelDescription& describe_family(const std::string& family, const std::string& config_file);

/// config.json of `folder`. Throws UserError naming file and key.
struct ModelFolder {
    const ModelDescription* description = nullptr;
    TransformerConfig config;
};
ModelFolder read_model_config(const std::string& folder);

/// Ids of a key of config.json that holds one token id or a list ("bos_token_id", "eos_token_id");
/// none when it is missing. Read by who uses them only: transformers writes ids into every folder,
/// also such as the vocabulary does not have. Throws UserError when it holds something else.
std::vector<Index> read_token_ids(const std::string& folder, const std::string& key);

}  // namespace clt
