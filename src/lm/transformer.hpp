// A causal language model from a Hugging Face folder, forward only, with taps on the residual
// stream and the MLPs. Which names, shapes and parts a family has is data (src/lm/
// model_description.hpp); the GPT-2 family is described now. T tokens, L layers, d width, V
// vocabulary. Source: Radford et al. 2019, section 2.3; Vaswani et al. 2017, section 3.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "clt/backend/backend.hpp"

namespace clt {

struct TransformerConfig {
    std::string family;  // config.json's model_type
    Index layers = 0;
    Index d_model = 0;
    Index heads = 0;
    Index d_mlp = 0;
    Index vocabulary = 0;
    Index positions = 0;  // longest sequence
    float norm_epsilon = 0;
    MlpActivation activation = MlpActivation::gelu_tanh;
    bool tied_unembedding = true;
};

/// Sequences one after the other, without padding.
struct SequenceBatch {
    std::vector<std::int32_t> ids;    // [T]
    std::vector<Index> starts = {0};  // [sequences + 1], the last is T

    Index tokens() const { return static_cast<Index>(ids.size()); }
    Index sequences() const { return static_cast<Index>(starts.size()) - 1; }
    void add(std::span<const std::int32_t> sequence);
    void clear();
};

/// Where a tap's values go: token t of layer l to row t, columns [l * layer_stride, + d). No rows:
/// the tap is closed.
struct Tap {
    Matrix<float> rows;
    Index layer_stride = 0;
};

struct Taps {
    Tap residual;    // the residual stream before the MLP's layer norm
    Tap mlp_input;   // behind that layer norm
    Tap mlp_output;  // what the MLP adds to the residual stream
};

/// What a model says about a token's successor.
struct Predictions {
    std::vector<float> logsumexp;      // of the logits
    std::vector<std::int32_t> argmax;  // most likely next token
    std::vector<float> loss;           // nats; 0 at a sequence's last token
};

class Transformer {
  public:
    /// Reads config.json and model.safetensors (or the shards of model.safetensors.index.json) into
    /// backend memory; the backend must outlive the model. Every rank reads for itself: not
    /// collective. Throws UserError naming the file, key or tensor.
    Transformer(const std::string& folder, Backend& backend);

    const TransformerConfig& config() const { return config_; }

    /// Runs the layers over the batch and fills the open taps. A sequence's values do not depend
    /// on the others in its batch, up to the rounding order of the dense products. Throws UserError
    /// when an id is not in the vocabulary or a sequence is longer than config().positions.
    void forward(const SequenceBatch& batch, const Taps& taps);
    /// Logits of tokens [range) of the last forward pass: out[range, V].
    void logits(Shard range, Matrix<float> out);
    /// The last forward pass held against its own next tokens. In blocks of tokens: [T, V] is never
    /// in memory.
    Predictions predict();

  private:
    struct Norm {
        Buffer<float> gain, bias;
    };
    struct Linear {
        Buffer<float> weight, bias;
        Index in = 0;
        Index out = 0;
    };
    struct Layer {
        Norm attention_norm, mlp_norm;
        Linear qkv, attention_out, mlp_up, mlp_down;
    };
    /// y = alpha-free product: y = x W + beta * y.
    void multiply(Matrix<const float> x, const Linear& linear, float beta, Matrix<float> y);
    void reserve(Index tokens);
    Matrix<float> work(Buffer<float>& buffer, Index rows, Index cols);

    friend class TransformerLoader;
    Backend* backend_;
    TransformerConfig config_;
    bool weights_in_out_ = true;   // weights lie [in, out] rather than [out, in]
    Buffer<float> token_rows_;     // [V, d]
    Buffer<float> position_rows_;  // [positions, d]
    Buffer<float> unembedding_;    // [V, d]; empty when tied
    std::vector<Layer> layers_;
    Norm final_norm_;

    SequenceBatch batch_;  // the last one
    Buffer<std::int32_t> ids_;
    Buffer<float> x_;       // [T, d] residual stream
    Buffer<float> normed_;  // [T, d]
    Buffer<float> qkv_;     // [T, 3 d]
    Buffer<float> hidden_;  // [T, d_mlp]
    Buffer<float> output_;  // [T, d]
};

}  // namespace clt
