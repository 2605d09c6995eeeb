#include "reference/dense_clt.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace clt::reference {
namespace {

std::size_t at_index(Index i) {
    return static_cast<std::size_t>(i);
}

}  // namespace

Parameters::Parameters(const Shape& s, bool thresholds)
    : shape(s), decoder_bias(at_index(s.layers * s.d_model)) {
    for (Index layer = 0; layer < s.layers; ++layer) {
        encoder.emplace_back(at_index(s.features * s.d_model));
        encoder_bias.emplace_back(at_index(s.features));
        decoder.emplace_back(at_index(s.features * s.decoder_width(layer)));
        if (thresholds) log_threshold.emplace_back(at_index(s.features));
    }
}

std::vector<std::pair<std::string, Vector*>> Parameters::arrays() {
    std::vector<std::pair<std::string, Vector*>> all;
    for (std::size_t l = 0; l < encoder.size(); ++l) {
        all.emplace_back(fmt::format("encoder/layer_{}/weight", l), &encoder[l]);
        all.emplace_back(fmt::format("encoder/layer_{}/bias", l), &encoder_bias[l]);
    }
    for (std::size_t l = 0; l < decoder.size(); ++l)
        all.emplace_back(fmt::format("decoder/layer_{}/weight", l), &decoder[l]);
    all.emplace_back("decoder/bias", &decoder_bias);
    for (std::size_t l = 0; l < log_threshold.size(); ++l)
        all.emplace_back(fmt::format("log_threshold/layer_{}", l), &log_threshold[l]);
    return all;
}

std::vector<bool> keep_largest(const Vector& scores, const std::vector<bool>& eligible,
                               Index count) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < scores.size(); ++i)
        if (eligible[i] && !std::isnan(scores[i])) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    std::vector<bool> kept(scores.size(), false);
    for (std::size_t i = 0; i < order.size() && static_cast<Index>(i) < count; ++i)
        kept[order[i]] = true;
    return kept;
}

DenseClt::DenseClt(const Shape& shape, const ModelConfig& model, const LossConfig& loss,
                   Vector error_scale)
    : shape_(shape), model_(model), loss_(loss), error_scale_(std::move(error_scale)) {}

// p_l = W_enc_l x_l + b_enc_l
Vector DenseClt::encode(const Parameters& params, const Batch& batch) const {
    const Index d = shape_.d_model;
    Vector pre(at_index(batch.tokens * shape_.layers * shape_.features));
    for (Index b = 0; b < batch.tokens; ++b)
        for (Index l = 0; l < shape_.layers; ++l)
            for (Index f = 0; f < shape_.features; ++f) {
                double sum = params.encoder_bias[at_index(l)][at_index(f)];
                for (Index i = 0; i < d; ++i)
                    sum += params.encoder[at_index(l)][at_index(f * d + i)] *
                           batch.inputs[at_index(column(b, l, i))];
                pre[at_index(at(b, l, f))] = sum;
            }
    return pre;
}

Vector DenseClt::scores(const Vector& pre, Index tokens) const {
    if (model_.ranking == "raw") return pre;
    Vector z(pre.size());
    const auto n = static_cast<double>(tokens);
    for (Index l = 0; l < shape_.layers; ++l)
        for (Index f = 0; f < shape_.features; ++f) {
            double mean = 0;
            for (Index b = 0; b < tokens; ++b) mean += pre[at_index(at(b, l, f))] / n;
            double squares = 0;
            for (Index b = 0; b < tokens; ++b) {
                const double delta = pre[at_index(at(b, l, f))] - mean;
                squares += delta * delta;
            }
            const double deviation = std::sqrt(squares / (n - 1));  // NaN for one token
            for (Index b = 0; b < tokens; ++b)
                z[at_index(at(b, l, f))] = (pre[at_index(at(b, l, f))] - mean) / (deviation + 1e-6);
        }
    return z;
}

std::vector<bool> DenseClt::select(const Parameters& params, const Vector& pre,
                                   Index tokens) const {
    std::vector<bool> on(pre.size(), false);
    const Index entries = shape_.layers * shape_.features;  // of a token
    if (model_.activation == "relu") {
        for (std::size_t i = 0; i < pre.size(); ++i) on[i] = pre[i] > 0;
    } else if (model_.activation == "jumprelu") {
        for (Index b = 0; b < tokens; ++b)
            for (Index l = 0; l < shape_.layers; ++l)
                for (Index f = 0; f < shape_.features; ++f)
                    on[at_index(at(b, l, f))] =
                        pre[at_index(at(b, l, f))] >=
                        std::exp(params.log_threshold[at_index(l)][at_index(f)]);
    } else {
        const Vector ranking = scores(pre, tokens);
        std::vector<bool> eligible(pre.size());
        for (std::size_t i = 0; i < pre.size(); ++i)
            eligible[i] = model_.keep_negative ? !std::isnan(pre[i]) : pre[i] > 0;
        if (model_.activation == "batchtopk")
            return keep_largest(
                ranking, eligible,
                static_cast<Index>(std::floor(model_.k * static_cast<double>(tokens))));
        // The product is rounded to float before it is rounded up, as the reference does: 0.1 * 30
        // is 3 there, not 3.0000000000000004.
        const auto count = static_cast<Index>(
            model_.k < 1 ? std::ceil(static_cast<float>(model_.k * static_cast<double>(entries)))
                         : std::floor(model_.k));
        for (Index b = 0; b < tokens; ++b) {
            const auto first = static_cast<std::ptrdiff_t>(b * entries);
            const auto last = static_cast<std::ptrdiff_t>((b + 1) * entries);
            const std::vector<bool> kept = keep_largest(
                Vector(ranking.begin() + first, ranking.begin() + last),
                std::vector<bool>(eligible.begin() + first, eligible.begin() + last), count);
            std::copy(kept.begin(), kept.end(), on.begin() + first);
        }
    }
    return on;
}

// yhat_t = sum_{s <= t} a_s W_dec_{s->t} + b_t
Vector DenseClt::decode(const Parameters& params, const Vector& activation, Index tokens) const {
    const Index d = shape_.d_model;
    Vector out(at_index(tokens * shape_.layers * d));
    for (Index b = 0; b < tokens; ++b)
        for (Index t = 0; t < shape_.layers; ++t)
            for (Index i = 0; i < d; ++i) {
                double sum = params.decoder_bias[at_index(t * d + i)];
                for (Index s = 0; s <= t; ++s)
                    for (Index f = 0; f < shape_.features; ++f)
                        sum += activation[at_index(at(b, s, f))] *
                               params.decoder[at_index(s)][at_index(f * shape_.decoder_width(s) +
                                                                    (t - s) * d + i)];
                out[at_index(column(b, t, i))] = sum;
            }
    return out;
}

Vector DenseClt::decoder_norms(const Parameters& params) const {
    Vector norms(at_index(shape_.layers * shape_.features));
    for (Index l = 0; l < shape_.layers; ++l)
        for (Index f = 0; f < shape_.features; ++f) {
            double squares = 0;
            for (Index i = 0; i < shape_.decoder_width(l); ++i) {
                const double w =
                    params.decoder[at_index(l)][at_index(f * shape_.decoder_width(l) + i)];
                squares += w * w;
            }
            norms[at_index(l * shape_.features + f)] = std::sqrt(squares);
        }
    return norms;
}

double DenseClt::penalty_weight(double lambda, Index tokens) const {
    return loss_.sparsity_reduction == "mean" ? lambda / static_cast<double>(tokens) : lambda;
}

Losses DenseClt::losses(const Parameters& params, const Batch& batch, const Vector& pre,
                        const Vector& activation, double lambda) const {
    const Index d = shape_.d_model;
    Losses out;
    out.squared_error.resize(at_index(shape_.layers));
    const Vector reconstruction = decode(params, activation, batch.tokens);
    for (Index b = 0; b < batch.tokens; ++b)
        for (Index l = 0; l < shape_.layers; ++l)
            for (Index i = 0; i < d; ++i) {
                const double e =
                    error_scale_[at_index(l * d + i)] * (reconstruction[at_index(column(b, l, i))] -
                                                         batch.targets[at_index(column(b, l, i))]);
                out.squared_error[at_index(l)] += e * e;
            }
    for (const double squares : out.squared_error)
        out.reconstruction += squares / static_cast<double>(batch.tokens * d);

    const Vector norms = decoder_norms(params);
    for (Index b = 0; b < batch.tokens; ++b)
        for (Index l = 0; l < shape_.layers; ++l)
            for (Index f = 0; f < shape_.features; ++f)
                out.sparsity +=
                    penalty_weight(lambda, batch.tokens) *
                    std::tanh(loss_.sparsity_scale * norms[at_index(l * shape_.features + f)] *
                              activation[at_index(at(b, l, f))]);

    for (const double p : pre)
        out.preactivation +=
            loss_.preactivation * std::max(-p, 0.0) / static_cast<double>(pre.size());
    out.total = out.reconstruction + out.sparsity + out.preactivation;
    return out;
}

Forward DenseClt::forward(const Parameters& params, const Batch& batch, double lambda) const {
    Forward out;
    out.pre = encode(params, batch);
    out.on = select(params, out.pre, batch.tokens);
    out.activation.resize(out.pre.size());
    for (std::size_t i = 0; i < out.pre.size(); ++i) out.activation[i] = out.on[i] ? out.pre[i] : 0;
    out.reconstruction = decode(params, out.activation, batch.tokens);
    out.losses = losses(params, batch, out.pre, out.activation, lambda);
    return out;
}

// dL/da [B, L, F] = sum_t W_dec_{s->t} dL/dyhat_t + the penalty's part, whose decoder part
// (through the norms) goes into `gradient`. A row of norm 0 has none: tanh(0) is at rest there.
Vector DenseClt::activation_gradient(const Parameters& params, const Batch& batch,
                                     const Forward& forward, double lambda,
                                     const Vector& output_gradient, Parameters& gradient) const {
    const Vector norms = decoder_norms(params);
    const double weight = penalty_weight(lambda, batch.tokens) * loss_.sparsity_scale;
    Vector out(forward.activation.size());
    for (Index s = 0; s < shape_.layers; ++s) {
        const Vector& decoder = params.decoder[at_index(s)];
        const Index width = shape_.decoder_width(s);
        for (Index f = 0; f < shape_.features; ++f) {
            const double norm = norms[at_index(s * shape_.features + f)];
            for (Index b = 0; b < batch.tokens; ++b) {
                const double a = forward.activation[at_index(at(b, s, f))];
                double sum = 0;
                for (Index i = 0; i < width; ++i)
                    sum += output_gradient[at_index(column(b, s, i))] *
                           decoder[at_index(f * width + i)];
                const double tanh = std::tanh(loss_.sparsity_scale * norm * a);
                const double slope = weight * (1 - tanh * tanh);
                out[at_index(at(b, s, f))] = sum + slope * norm;
                for (Index i = 0; i < width; ++i) {
                    double& g = gradient.decoder[at_index(s)][at_index(f * width + i)];
                    g += a * output_gradient[at_index(column(b, s, i))];
                    if (norm > 0) g += slope * a * decoder[at_index(f * width + i)] / norm;
                }
            }
        }
    }
    return out;
}

Parameters DenseClt::gradient(const Parameters& params, const Batch& batch, const Forward& forward,
                              double lambda) const {
    const Index d = shape_.d_model;
    Parameters gradient(shape_, !params.log_threshold.empty());
    Vector output_gradient(forward.reconstruction.size());  // dL/dyhat
    for (Index b = 0; b < batch.tokens; ++b)
        for (Index l = 0; l < shape_.layers; ++l)
            for (Index i = 0; i < d; ++i) {
                const double scale = error_scale_[at_index(l * d + i)];
                const double e = forward.reconstruction[at_index(column(b, l, i))] -
                                 batch.targets[at_index(column(b, l, i))];
                const double g = 2 * scale * scale * e / static_cast<double>(batch.tokens * d);
                output_gradient[at_index(column(b, l, i))] = g;
                gradient.decoder_bias[at_index(l * d + i)] += g;
            }
    const Vector da =
        activation_gradient(params, batch, forward, lambda, output_gradient, gradient);

    for (Index b = 0; b < batch.tokens; ++b)
        for (Index l = 0; l < shape_.layers; ++l)
            for (Index f = 0; f < shape_.features; ++f) {
                const std::size_t e = at_index(at(b, l, f));
                const double p = forward.pre[e];
                double dp = forward.on[e] ? da[e] : 0;
                if (p < 0) dp -= loss_.preactivation / static_cast<double>(forward.pre.size());
                gradient.encoder_bias[at_index(l)][at_index(f)] += dp;
                for (Index i = 0; i < d; ++i)
                    gradient.encoder[at_index(l)][at_index(f * d + i)] +=
                        dp * batch.inputs[at_index(column(b, l, i))];
                if (model_.activation == "jumprelu") {
                    const double theta = std::exp(params.log_threshold[at_index(l)][at_index(f)]);
                    if (std::abs(p - theta) <= model_.bandwidth / 2)
                        gradient.log_threshold[at_index(l)][at_index(f)] +=
                            da[e] * (-p / model_.bandwidth) * theta;
                }
            }
    return gradient;
}

Optimizer::Optimizer(const OptimizerConfig& config, const Shape& shape, bool thresholds)
    : moment1(shape, thresholds), moment2(shape, thresholds), config_(config) {}

double Optimizer::step(Parameters& params, Parameters gradient, double learning_rate) {
    ++steps_;
    const Index d = params.shape.d_model;
    const auto copies = [&](const std::string& name, std::size_t i) {
        return config_.reference_biases && name == "decoder/bias"
                   ? static_cast<double>(static_cast<Index>(i) / d + 1)
                   : 1.0;
    };
    double squares = 0;
    for (const auto& [name, g] : gradient.arrays())
        for (std::size_t i = 0; i < g->size(); ++i) squares += copies(name, i) * (*g)[i] * (*g)[i];
    const double norm = std::sqrt(squares);
    double scale = 1;
    if (config_.gradient_clip > 0) scale = std::min(1.0, config_.gradient_clip / (norm + 1e-6));

    const auto arrays = params.arrays();
    const auto gradients = gradient.arrays();
    const auto first = moment1.arrays();
    const auto second = moment2.arrays();
    const auto t = static_cast<double>(steps_);
    for (std::size_t a = 0; a < arrays.size(); ++a) {
        const std::string& name = arrays[a].first;
        const bool is_weight = name.ends_with("/weight");
        const double decay = config_.kind == "adamw" && (is_weight || config_.reference_biases)
                                 ? config_.weight_decay
                                 : 0;
        for (std::size_t i = 0; i < arrays[a].second->size(); ++i) {
            const double g = scale * (*gradients[a].second)[i];
            double& p = (*arrays[a].second)[i];
            double& m = (*first[a].second)[i];
            double& v = (*second[a].second)[i];
            m = config_.beta1 * m + (1 - config_.beta1) * g;
            v = config_.beta2 * v + (1 - config_.beta2) * g * g;
            const double m_hat = m / (1 - std::pow(config_.beta1, t));
            const double v_hat = v / (1 - std::pow(config_.beta2, t));
            p -= learning_rate * decay * p +
                 copies(name, i) * learning_rate * m_hat / (std::sqrt(v_hat) + config_.epsilon);
        }
    }
    return norm;
}

}  // namespace clt::reference
