#include "lm/model_description.hpp"

#include <map>
#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"
#include "clt/io/json.hpp"

namespace clt {
namespace {

ModelDescription gpt2() {
    ModelDescription m;
    m.family = "gpt2";
    m.layers = "n_layer";
    m.d_model = "n_embd";
    m.heads = "n_head";
    m.d_mlp = "n_inner";
    m.positions = "n_positions";
    m.norm_epsilon = "layer_norm_epsilon";
    m.activation = "activation_function";
    m.default_activation = "gelu_new";
    m.must_be_true = {"scale_attn_weights"};
    m.must_be_false = {"scale_attn_by_inverse_layer_idx", "add_cross_attention"};
    m.prefixes = {"transformer.", ""};
    m.token_rows = "wte.weight";
    m.position_rows = "wpe.weight";
    m.final_norm = "ln_f";
    m.attention_norm = "h.{}.ln_1";
    m.qkv = "h.{}.attn.c_attn";
    m.attention_out = "h.{}.attn.c_proj";
    m.mlp_norm = "h.{}.ln_2";
    m.mlp_up = "h.{}.mlp.c_fc";
    m.mlp_down = "h.{}.mlp.c_proj";
    m.unembedding = "lm_head.weight";
    m.weights_in_out = true;  // Hugging Face's Conv1D
    return m;
}

const std::vector<ModelDescription>& families() {
    static const std::vector<ModelDescription> all = {gpt2()};
    return all;
}

MlpActivation activation_named(const std::string& name, const std::string& file,
                               const std::string& key) {
    static const std::map<std::string, MlpActivation> known = {
        {"gelu_new", MlpActivation::gelu_tanh},
        {"gelu_pytorch_tanh", MlpActivation::gelu_tanh},
        {"gelu", MlpActivation::gelu_erf},
        {"relu", MlpActivation::relu}};
    const auto found = known.find(name);
    if (found == known.end())
        user_error("{}: \"{}\" is \"{}\", expected gelu_new, gelu_pytorch_tanh, gelu or relu", file,
                   key, name);
    return found->second;
}

}  // namespace

const ModelDescription& describe_family(const std::string& family, const std::string& config_file) {
    std::string known;
    for (const ModelDescription& description : families()) {
        if (description.family == family) return description;
        known += (known.empty() ? "" : ", ") + description.family;
    }
    user_error("{}: model_type \"{}\" is not supported, expected one of: {}", config_file, family,
               known);
}

ModelFolder read_model_config(const std::string& folder) {
    const std::string file = folder + "/config.json";
    const JsonObject json = JsonObject::read(file);
    const ModelDescription& description = describe_family(json.text("model_type"), file);
    for (const std::string& key : description.must_be_false)
        if (json.flag_or(key, false)) json.refuse(key, "false: the rest is not supported");
    for (const std::string& key : description.must_be_true)
        if (!json.flag_or(key, true)) json.refuse(key, "true: the rest is not supported");

    TransformerConfig c;
    c.family = description.family;
    c.layers = json.integer(description.layers, 1);
    c.d_model = json.integer(description.d_model, 1);
    c.heads = json.integer(description.heads, 1);
    c.d_mlp = json.integer_or(description.d_mlp, description.mlp_ratio * c.d_model, 1);
    c.positions = json.integer(description.positions, 1);
    c.vocabulary = json.integer("vocab_size", 1);
    c.norm_epsilon = static_cast<float>(json.finite_or(description.norm_epsilon, 1e-5));
    if (!(c.norm_epsilon > 0)) json.refuse(description.norm_epsilon, "a positive number");
    c.activation =
        activation_named(json.text_or(description.activation, description.default_activation), file,
                         description.activation);
    c.tied_unembedding = json.flag_or("tie_word_embeddings", true);
    if (c.d_model % c.heads != 0)
        user_error("{}: \"{}\" = {} is not a multiple of \"{}\" = {}", file, description.d_model,
                   c.d_model, description.heads, c.heads);
    return {&description, c};
}

std::vector<Index> read_token_ids(const std::string& folder, const std::string& key) {
    const JsonObject json = JsonObject::read(folder + "/config.json");
    if (!json.has(key)) return {};
    if (json.json()[key].is_array()) return json.integers(key);
    return {json.integer(key)};
}

}  // namespace clt
