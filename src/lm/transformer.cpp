#include "lm/transformer.hpp"

#include <algorithm>

#include "clt/base/stop.hpp"
#include "lm/model_description.hpp"
#include "lm/tensor_files.hpp"

namespace clt {
namespace {

// Tokens whose logits are in memory at a time: 512 x 50,257 floats are 103 MB.
constexpr Index logit_rows = 512;

Matrix<float> rows_of(Matrix<float> m, Shard range) {
    return {m.elements.subspan(range.begin * m.stride, (range.size() - 1) * m.stride + m.cols),
            range.size(), m.cols, m.stride};
}

Matrix<float> columns_of(const Tap& tap, Index layer, Index tokens, Index d) {
    const Index first = layer * tap.layer_stride;
    CLT_CHECK(tap.rows.rows == tokens && first + d <= tap.rows.cols);
    return {tap.rows.elements.subspan(first, tap.rows.elements.size() - first), tokens, d,
            tap.rows.stride};
}

}  // namespace

// Reads the tensors one by one into backend memory.
class TransformerLoader {
  public:
    TransformerLoader(const std::string& folder, Transformer& model)
        : folder_(read_model_config(folder)), files_(folder), model_(model) {
        model.config_ = folder_.config;
        model.weights_in_out_ = folder_.description->weights_in_out;
        prefix_ = find_prefix();
        token_rows_ = prefix_ + folder_.description->token_rows;
        if (const auto stored = files_.ending_in(folder_.description->unembedding);
            stored.size() == 1)
            unembedding_ = stored.front();
        // Of two names of one tensor a file may hold the other.
        if (!files_.contains(token_rows_) && folder_.config.tied_unembedding &&
            !unembedding_.empty())
            token_rows_ = unembedding_;
    }

    void load() {
        const ModelDescription& names = *folder_.description;
        const TransformerConfig& c = folder_.config;
        const Index d = c.d_model;
        model_.token_rows_ = tensor(token_rows_, {c.vocabulary, d});
        model_.position_rows_ = tensor(prefix_ + names.position_rows, {c.positions, d});
        // Only logits need it: who asks for them without one is told.
        if (!c.tied_unembedding && !unembedding_.empty())
            model_.unembedding_ = tensor(unembedding_, {c.vocabulary, d});
        for (Index layer = 0; layer < c.layers; ++layer) {
            const auto name = [&](const std::string& part) {
                return prefix_ + fmt::format(fmt::runtime(part), layer);
            };
            Transformer::Layer& l = model_.layers_.emplace_back();
            l.attention_norm = norm(name(names.attention_norm));
            l.qkv = linear(name(names.qkv), d, 3 * d);
            l.attention_out = linear(name(names.attention_out), d, d);
            l.mlp_norm = norm(name(names.mlp_norm));
            l.mlp_up = linear(name(names.mlp_up), d, c.d_mlp);
            l.mlp_down = linear(name(names.mlp_down), c.d_mlp, d);
        }
        model_.final_norm_ = norm(prefix_ + names.final_norm);
    }

  private:
    // What stands before the names of the model proper: nothing, "transformer.", or what training
    // frameworks put there ("module.transformer."). Where the token rows have another name, the
    // position rows tell.
    std::string find_prefix() const {
        const ModelDescription& names = *folder_.description;
        for (const std::string& part : {names.token_rows, names.position_rows}) {
            for (const std::string& prefix : names.prefixes)
                if (files_.contains(prefix + part)) return prefix;
            const std::vector<std::string> found = files_.ending_in(part);
            if (found.size() > 1)
                user_error("{}: holds several models: tensors \"{}\" and \"{}\"", files_.source(),
                           found[0], found[1]);
            if (found.size() == 1)
                return found.front().substr(0, found.front().size() - part.size());
        }
        user_error("{}: tensor \"{}\" is missing, under whatever prefix", files_.source(),
                   names.token_rows);
    }
    Buffer<float> tensor(const std::string& name, const std::vector<Index>& shape) {
        stop_point("the language model was read");
        const std::vector<float> values = files_.read(name, shape);
        Buffer<float> buffer(model_.backend_->memory(), static_cast<Index>(values.size()),
                             Purpose::language_model);
        model_.backend_->upload(std::span<const float>(values), buffer.span());
        return buffer;
    }
    Transformer::Norm norm(const std::string& name) {
        const Index d = folder_.config.d_model;
        return {tensor(name + ".weight", {d}), tensor(name + ".bias", {d})};
    }
    Transformer::Linear linear(const std::string& name, Index in, Index out) {
        const std::vector<Index> shape =
            model_.weights_in_out_ ? std::vector<Index>{in, out} : std::vector<Index>{out, in};
        return {tensor(name + ".weight", shape), tensor(name + ".bias", {out}), in, out};
    }

    ModelFolder folder_;
    TensorFiles files_;
    Transformer& model_;
    std::string prefix_;
    std::string token_rows_;
    std::string unembedding_;  // empty: there is none
};

void SequenceBatch::add(std::span<const std::int32_t> sequence) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    starts.push_back(tokens());
}

void SequenceBatch::clear() {
    ids.clear();
    starts.assign(1, 0);
}

Transformer::Transformer(const std::string& folder, Backend& backend) : backend_(&backend) {
    TransformerLoader(folder, *this).load();
}

void Transformer::multiply(Matrix<const float> x, const Linear& linear, float beta,
                           Matrix<float> y) {
    const Index rows = weights_in_out_ ? linear.in : linear.out;
    const Index cols = weights_in_out_ ? linear.out : linear.in;
    backend_->gemm(false, !weights_in_out_, 1, x,
                   Matrix<const float>(linear.weight.span(), rows, cols), beta, y);
}

Matrix<float> Transformer::work(Buffer<float>& buffer, Index rows, Index cols) {
    buffer.reserve_discarding(backend_->memory(), rows * cols, Purpose::language_model);
    return {buffer.span().subspan(0, rows * cols), rows, cols};
}

void Transformer::forward(const SequenceBatch& batch, const Taps& taps) {
    for (const std::int32_t id : batch.ids)
        if (id < 0 || id >= config_.vocabulary)
            user_error("token id {} is not in the model's vocabulary of {}", id,
                       config_.vocabulary);
    for (Index s = 0; s < batch.sequences(); ++s) {
        const auto at = static_cast<std::size_t>(s);
        if (batch.starts[at + 1] - batch.starts[at] > config_.positions)
            user_error("a sequence of {} tokens is longer than the model's {} positions",
                       batch.starts[at + 1] - batch.starts[at], config_.positions);
    }
    batch_ = batch;
    const Index tokens = batch.tokens();
    const Index d = config_.d_model;
    Backend& b = *backend_;
    ids_.reserve_discarding(b.memory(), tokens, Purpose::language_model);
    b.upload(std::span<const std::int32_t>(batch.ids), ids_.span().subspan(0, tokens));
    const Matrix<float> x = work(x_, tokens, d);
    const Matrix<float> qkv = work(qkv_, tokens, 3 * d);
    const Matrix<float> hidden = work(hidden_, tokens, config_.d_mlp);
    const std::span<const Index> starts(batch.starts);

    b.embed(ids_.span().subspan(0, tokens), starts,
            Matrix<const float>(token_rows_.span(), config_.vocabulary, d),
            Matrix<const float>(position_rows_.span(), config_.positions, d), x);
    for (Index l = 0; l < config_.layers; ++l) {
        const Layer& layer = layers_[static_cast<std::size_t>(l)];
        // Attention: x += W_o attention(W_qkv norm(x)).
        const Matrix<float> attended = work(output_, tokens, d);
        const Matrix<float> normed = work(normed_, tokens, d);
        b.layer_norm(x, layer.attention_norm.gain.span(), layer.attention_norm.bias.span(),
                     config_.norm_epsilon, normed);
        multiply(normed, layer.qkv, 0, qkv);
        b.add_bias(layer.qkv.bias.span(), qkv);
        b.attention(qkv, starts, config_.heads, attended);
        multiply(attended, layer.attention_out, 1, x);
        b.add_bias(layer.attention_out.bias.span(), x);

        // MLP: x += W_down act(W_up norm(x)). Open taps are written where the values arise.
        if (taps.residual.rows.rows > 0) b.copy_matrix(x, columns_of(taps.residual, l, tokens, d));
        const Matrix<float> input =
            taps.mlp_input.rows.rows > 0 ? columns_of(taps.mlp_input, l, tokens, d) : normed;
        const Matrix<float> output =
            taps.mlp_output.rows.rows > 0 ? columns_of(taps.mlp_output, l, tokens, d) : attended;
        b.layer_norm(x, layer.mlp_norm.gain.span(), layer.mlp_norm.bias.span(),
                     config_.norm_epsilon, input);
        multiply(input, layer.mlp_up, 0, hidden);
        b.bias_activation(layer.mlp_up.bias.span(), config_.activation, hidden);
        multiply(hidden, layer.mlp_down, 0, output);
        b.add_bias(layer.mlp_down.bias.span(), output);
        b.add(output, x);
    }
}

void Transformer::logits(Shard range, Matrix<float> out) {
    CLT_CHECK(range.begin >= 0 && range.end <= batch_.tokens());
    CLT_CHECK(out.rows == range.size() && out.cols == config_.vocabulary);
    if (!config_.tied_unembedding && unembedding_.size() == 0)
        user_error(
            "the language model has no output matrix: config.json says tie_word_embeddings = "
            "false, "
            "and its files hold none");
    if (range.size() == 0) return;
    const Index d = config_.d_model;
    const Matrix<float> x = rows_of(work(x_, batch_.tokens(), d), range);
    const Matrix<float> normed = work(normed_, range.size(), d);
    backend_->layer_norm(x, final_norm_.gain.span(), final_norm_.bias.span(), config_.norm_epsilon,
                         normed);
    const Buffer<float>& rows = config_.tied_unembedding ? token_rows_ : unembedding_;
    backend_->gemm(false, true, 1, normed, Matrix<const float>(rows.span(), config_.vocabulary, d),
                   0, out);
}

Predictions Transformer::predict() {
    const Index tokens = batch_.tokens();
    const auto n = static_cast<std::size_t>(tokens);
    std::vector<std::int32_t> targets(n, -1);
    for (Index s = 0; s < batch_.sequences(); ++s) {
        const auto begin = static_cast<std::size_t>(batch_.starts[static_cast<std::size_t>(s)]);
        const auto end = static_cast<std::size_t>(batch_.starts[static_cast<std::size_t>(s) + 1]);
        for (std::size_t t = begin; t + 1 < end; ++t) targets[t] = batch_.ids[t + 1];
    }
    Predictions result{std::vector<float>(n), std::vector<std::int32_t>(n), std::vector<float>(n)};
    MemoryResource& memory = backend_->memory();
    const Index block = std::min(logit_rows, tokens);
    Buffer<float> logit_buffer(memory, block * config_.vocabulary, Purpose::language_model);
    Buffer<float> sums(memory, block, Purpose::language_model);
    Buffer<float> losses(memory, block, Purpose::language_model);
    Buffer<std::int32_t> places(memory, block, Purpose::language_model);
    Buffer<std::int32_t> wanted(memory, block, Purpose::language_model);
    for (Index at = 0; at < tokens; at += block) {
        const Index rows = std::min(block, tokens - at);
        const auto host = [&](auto& values) {
            return std::span(values).subspan(static_cast<std::size_t>(at),
                                             static_cast<std::size_t>(rows));
        };
        const Matrix<float> part = work(logit_buffer, rows, config_.vocabulary);
        logits({at, at + rows}, part);
        backend_->upload(std::span<const std::int32_t>(host(targets)),
                         wanted.span().subspan(0, rows));
        backend_->predict(part, wanted.span().subspan(0, rows), sums.span().subspan(0, rows),
                          losses.span().subspan(0, rows), places.span().subspan(0, rows));
        backend_->download(Span<const float>(sums.span().subspan(0, rows)), host(result.logsumexp));
        backend_->download(Span<const float>(losses.span().subspan(0, rows)), host(result.loss));
        backend_->download(Span<const std::int32_t>(places.span().subspan(0, rows)),
                           host(result.argmax));
    }
    return result;
}

}  // namespace clt
