// [model] and [loss] of a train job. Formulas: see model/step.hpp.
#pragma once

#include <string>

#include "clt/base/fields.hpp"
#include "clt/base/types.hpp"

namespace clt {

struct ModelConfig {
    Index features = 0;
    std::string activation = "batchtopk";
    double k = 0;
    std::string ranking = "raw";
    bool keep_negative = false;
    double threshold = 0.03;
    double bandwidth = 1.0;

    template <class V>
    void fields(V& v) {
        v("features", features, rule::required() | rule::count(), "Features a layer (F)");
        v("activation", activation, rule::one_of({"batchtopk", "topk", "jumprelu", "relu"}),
          "Activation function");
        v("k", k, rule::at_least(0),
          "batchtopk: active features a token on average, summed over all layers; topk: features a "
          "token over all "
          "layers, below 1 a fraction of L*F");
        v("ranking", ranking, rule::one_of({"raw", "zscore"}),
          "What batchtopk and topk rank by: the pre-activation, or its z-score over the batch (the "
          "Python reference)");
        v("keep_negative", keep_negative, rule::any(),
          "batchtopk and topk may keep negative pre-activations (the Python reference does)");
        v("threshold", threshold, rule::float32(), "jumprelu: initial threshold of every feature");
        v("bandwidth", bandwidth, rule::float32(),
          "jumprelu: width of the threshold gradient's window");
    }
};

struct Shape;
/// Throws UserError when k keeps nothing of a batch of this size or asks for more than there is.
void check_k(const ModelConfig& model, const Shape& shape, Index batch_tokens);

struct LossConfig {
    double sparsity = 0.0;
    double sparsity_scale = 1.0;
    std::string sparsity_reduction = "mean";
    std::string sparsity_schedule = "linear";
    double sparsity_delay = 0.1;
    double preactivation = 0.0;

    template <class V>
    void fields(V& v) {
        v("sparsity", sparsity, rule::float32_or_zero(),
          "Final weight (lambda) of the tanh sparsity penalty; 0: none");
        v("sparsity_scale", sparsity_scale, rule::float32(),
          "c in tanh(c * |decoder row| * activation)");
        v("sparsity_reduction", sparsity_reduction, rule::one_of({"mean", "sum"}),
          "Penalty averaged over the batch's tokens, or summed (the Python reference)");
        v("sparsity_schedule", sparsity_schedule, rule::one_of({"linear", "delayed_linear"}),
          "Lambda grows from 0 over all steps, or over those after the delay");
        v("sparsity_delay", sparsity_delay, rule::between(0, 1),
          "delayed_linear: fraction of steps with lambda 0");
        v("preactivation", preactivation, rule::float32_or_zero(),
          "Weight of the mean of relu(-preactivation); 0: none");
    }
};

}  // namespace clt
