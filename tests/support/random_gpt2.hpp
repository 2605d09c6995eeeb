// A small random GPT-2 in the files of a Hugging Face folder, and its forward pass in double, in
// loops, as an oracle.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "clt/base/float16.hpp"
#include "clt/io/file.hpp"

namespace clt::test {

struct HostTensor {
    std::vector<Index> shape;
    std::vector<float> values;
};
using HostTensors = std::map<std::string, HostTensor>;

/// Writes tensors in this type; the values become what the file holds.
inline void write_safetensors(const std::string& path, HostTensors& tensors, DType type) {
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    const char* const name = type == DType::float32   ? "F32"
                             : type == DType::float16 ? "F16"
                                                      : "BF16";
    for (auto& [key, tensor] : tensors) {
        const auto n = static_cast<Index>(tensor.values.size());
        std::string bytes(static_cast<std::size_t>(n * size_of(type)), '\0');
        from_float(type, tensor.values.data(), bytes.data(), n);
        to_float(type, bytes.data(), tensor.values.data(), n);
        header[key] = {{"dtype", name},
                       {"shape", tensor.shape},
                       {"data_offsets", {data.size(), data.size() + bytes.size()}}};
        data += bytes;
    }
    const std::string text = header.dump();
    const auto length = static_cast<std::uint64_t>(text.size());
    std::string file(sizeof length, '\0');
    std::memcpy(file.data(), &length, sizeof length);
    write_file(path, file + text + data);
}

struct RandomGpt2 {
    Index layers = 2;
    Index d = 24;
    Index heads = 3;
    Index d_mlp = 40;
    Index vocabulary = 37;
    Index positions = 80;
    std::string activation = "gelu_new";
    bool tied = true;
    HostTensors tensors;

    /// Large enough weights that attention is far from uniform.
    void fill(unsigned seed) {
        std::mt19937 generator(seed);
        std::normal_distribution<float> normal;
        const auto add = [&](const std::string& name, std::vector<Index> shape, float scale,
                             float mean = 0) {
            Index n = 1;
            for (const Index extent : shape) n *= extent;
            HostTensor tensor{std::move(shape), std::vector<float>(static_cast<std::size_t>(n))};
            for (float& value : tensor.values) value = mean + scale * normal(generator);
            tensors[name] = std::move(tensor);
        };
        const float scale = 1.5F / std::sqrt(static_cast<float>(d));
        add("wte.weight", {vocabulary, d}, 1);
        add("wpe.weight", {positions, d}, 0.5F);
        add("ln_f.weight", {d}, 0.2F, 1);
        add("ln_f.bias", {d}, 0.2F);
        if (!tied) add("lm_head.weight", {vocabulary, d}, 1);
        for (Index l = 0; l < layers; ++l) {
            const std::string h = "h." + std::to_string(l) + ".";
            for (const char* norm : {"ln_1", "ln_2"}) {
                add(h + norm + ".weight", {d}, 0.2F, 1);
                add(h + norm + ".bias", {d}, 0.2F);
            }
            add(h + "attn.c_attn.weight", {d, 3 * d}, scale);
            add(h + "attn.c_attn.bias", {3 * d}, 0.2F);
            add(h + "attn.c_proj.weight", {d, d}, scale);
            add(h + "attn.c_proj.bias", {d}, 0.2F);
            add(h + "mlp.c_fc.weight", {d, d_mlp}, scale);
            add(h + "mlp.c_fc.bias", {d_mlp}, 0.2F);
            add(h + "mlp.c_proj.weight", {d_mlp, d}, scale);
            add(h + "mlp.c_proj.bias", {d}, 0.2F);
        }
    }

    nlohmann::json config() const {
        return {{"model_type", "gpt2"},
                {"n_layer", layers},
                {"n_embd", d},
                {"n_head", heads},
                {"n_inner", d_mlp},
                {"vocab_size", vocabulary},
                {"n_positions", positions},
                {"activation_function", activation},
                {"layer_norm_epsilon", 1e-5},
                {"tie_word_embeddings", tied},
                {"bos_token_id", 0},
                {"eos_token_id", 0}};
    }

    void write(const std::string& folder, DType type = DType::float32) {
        write_file(folder + "/config.json", config().dump());
        write_safetensors(folder + "/model.safetensors", tensors, type);
    }
};

/// By layer and token, [L][T][d]; logits [T][V].
struct OraclePass {
    std::vector<std::vector<std::vector<double>>> residual, mlp_input, mlp_output;
    std::vector<std::vector<double>> logits;
};

class Gpt2Oracle {
  public:
    explicit Gpt2Oracle(const RandomGpt2& model) : m_(model) {}

    OraclePass run(const std::vector<std::int32_t>& ids) const {
        OraclePass pass;
        const std::size_t d = size(m_.d);
        std::vector<Row> x;
        for (std::size_t t = 0; t < ids.size(); ++t) {
            Row row(d);
            for (std::size_t c = 0; c < d; ++c)
                row[c] = at("wte.weight", size(ids[t]) * d + c) + at("wpe.weight", t * d + c);
            x.push_back(row);
        }
        for (Index l = 0; l < m_.layers; ++l) {
            const std::string h = "h." + std::to_string(l) + ".";
            attend(h, x);
            pass.residual.push_back(x);
            auto& inputs = pass.mlp_input.emplace_back();
            auto& outputs = pass.mlp_output.emplace_back();
            for (Row& row : x) {
                inputs.push_back(norm(row, h + "ln_2"));
                Row hidden = linear(inputs.back(), h + "mlp.c_fc");
                for (double& value : hidden) value = activate(value);
                outputs.push_back(linear(hidden, h + "mlp.c_proj"));
                for (std::size_t c = 0; c < d; ++c) row[c] += outputs.back()[c];
            }
        }
        for (const Row& row : x) {
            const Row normed = norm(row, "ln_f");
            Row logits(size(m_.vocabulary), 0);
            for (std::size_t v = 0; v < logits.size(); ++v)
                for (std::size_t c = 0; c < d; ++c)
                    logits[v] +=
                        normed[c] * at(m_.tied ? "wte.weight" : "lm_head.weight", v * d + c);
            pass.logits.push_back(logits);
        }
        return pass;
    }

  private:
    using Row = std::vector<double>;
    static std::size_t size(Index i) { return static_cast<std::size_t>(i); }
    double at(const std::string& name, std::size_t i) const {
        return static_cast<double>(m_.tensors.at(name).values[i]);
    }
    Row norm(const Row& x, const std::string& name) const {
        double mean = 0;
        for (const double value : x) mean += value / static_cast<double>(x.size());
        double variance = 0;
        for (const double value : x)
            variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
        Row y(x.size());
        for (std::size_t c = 0; c < x.size(); ++c)
            y[c] = (x[c] - mean) / std::sqrt(variance + 1e-5) * at(name + ".weight", c) +
                   at(name + ".bias", c);
        return y;
    }
    Row linear(const Row& x, const std::string& name) const {
        const HostTensor& weight = m_.tensors.at(name + ".weight");
        const std::size_t out = size(weight.shape[1]);
        Row y(out);
        for (std::size_t o = 0; o < out; ++o) {
            y[o] = at(name + ".bias", o);
            for (std::size_t i = 0; i < x.size(); ++i)
                y[o] += x[i] * static_cast<double>(weight.values[i * out + o]);
        }
        return y;
    }
    double activate(double x) const {
        if (m_.activation == "relu") return x > 0 ? x : 0;
        if (m_.activation == "gelu") return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        return 0.5 * x *
               (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    }
    void attend(const std::string& h, std::vector<Row>& x) const {
        const std::size_t d = size(m_.d);
        const std::size_t width = size(m_.d / m_.heads);
        std::vector<Row> qkv;
        for (const Row& row : x) qkv.push_back(linear(norm(row, h + "ln_1"), h + "attn.c_attn"));
        for (std::size_t t = 0; t < x.size(); ++t) {
            Row joined(d, 0);
            for (std::size_t first = 0; first < d; first += width) {
                Row weight(t + 1);
                double total = 0;
                for (std::size_t s = 0; s <= t; ++s) {
                    double score = 0;
                    for (std::size_t c = first; c < first + width; ++c)
                        score += qkv[t][c] * qkv[s][d + c];
                    weight[s] = std::exp(score / std::sqrt(static_cast<double>(width)));
                    total += weight[s];
                }
                for (std::size_t s = 0; s <= t; ++s)
                    for (std::size_t c = first; c < first + width; ++c)
                        joined[c] += weight[s] / total * qkv[s][2 * d + c];
            }
            const Row out = linear(joined, h + "attn.c_proj");
            for (std::size_t c = 0; c < d; ++c) x[t][c] += out[c];
        }
    }

    const RandomGpt2& m_;
};

}  // namespace clt::test
