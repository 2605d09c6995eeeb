#include "lm/model_description.hpp"

#include <map>
#include <nlohmann/json.hpp>

#include "clt/io/file.hpp"

namespace clt {
namespace {

using Json = nlohmann::json;

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

// Typed look-up with one sentence for everything that can be wrong.
class ConfigReader {
  public:
    ConfigReader(std::string file, const Json& json) : file_(std::move(file)), json_(json) {}

    bool has(const std::string& key) const { return json_.contains(key) && !json_[key].is_null(); }
    Index positive(const std::string& key) const {
        if (!has(key)) user_error("{}: \"{}\" is missing, expected a positive integer", file_, key);
        if (!json_[key].is_number_integer() || json_[key].get<Index>() <= 0)
            user_error("{}: \"{}\" is {}, expected a positive integer", file_, key,
                       json_[key].dump());
        return json_[key].get<Index>();
    }
    double positive_number(const std::string& key, double otherwise) const {
        if (!has(key)) return otherwise;
        if (!json_[key].is_number() || !(json_[key].get<double>() > 0))
            user_error("{}: \"{}\" is {}, expected a positive number", file_, key,
                       json_[key].dump());
        return json_[key].get<double>();
    }
    std::string text(const std::string& key, const std::string& otherwise) const {
        if (!has(key)) return otherwise;
        if (!json_[key].is_string())
            user_error("{}: \"{}\" is {}, expected a text", file_, key, json_[key].dump());
        return json_[key].get<std::string>();
    }
    bool flag(const std::string& key, bool otherwise) const {
        if (!has(key)) return otherwise;
        if (!json_[key].is_boolean())
            user_error("{}: \"{}\" is {}, expected true or false", file_, key, json_[key].dump());
        return json_[key].get<bool>();
    }
    std::optional<std::int32_t> token(const std::string& key, Index vocabulary) const {
        if (!has(key)) return std::nullopt;
        if (!json_[key].is_number_integer() || json_[key].get<Index>() < 0 ||
            json_[key].get<Index>() >= vocabulary)
            user_error("{}: \"{}\" is {}, expected a token id below {}", file_, key,
                       json_[key].dump(), vocabulary);
        return json_[key].get<std::int32_t>();
    }

  private:
    std::string file_;
    const Json& json_;
};

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
    const Json json = Json::parse(read_file(file), nullptr, false);
    if (!json.is_object()) user_error("{}: not a JSON object", file);
    const ConfigReader reader(file, json);
    if (!reader.has("model_type")) user_error("{}: \"model_type\" is missing", file);
    const ModelDescription& description = describe_family(reader.text("model_type", ""), file);
    for (const std::string& key : description.must_be_false)
        if (reader.flag(key, false))
            user_error("{}: \"{}\" = true is not supported, expected false", file, key);
    for (const std::string& key : description.must_be_true)
        if (!reader.flag(key, true))
            user_error("{}: \"{}\" = false is not supported, expected true", file, key);

    TransformerConfig c;
    c.family = description.family;
    c.layers = reader.positive(description.layers);
    c.d_model = reader.positive(description.d_model);
    c.heads = reader.positive(description.heads);
    c.d_mlp = reader.has(description.d_mlp) ? reader.positive(description.d_mlp)
                                            : description.mlp_ratio * c.d_model;
    c.positions = reader.positive(description.positions);
    c.vocabulary = reader.positive("vocab_size");
    c.norm_epsilon = static_cast<float>(reader.positive_number(description.norm_epsilon, 1e-5));
    c.activation =
        activation_named(reader.text(description.activation, description.default_activation), file,
                         description.activation);
    c.tied_unembedding = reader.flag("tie_word_embeddings", true);
    c.begin_token = reader.token("bos_token_id", c.vocabulary);
    c.end_token = reader.token("eos_token_id", c.vocabulary);
    if (c.d_model % c.heads != 0)
        user_error("{}: \"{}\" = {} is not a multiple of \"{}\" = {}", file, description.d_model,
                   c.d_model, description.heads, c.heads);
    return {&description, c};
}

}  // namespace clt
