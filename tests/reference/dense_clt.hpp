// The oracle: a dense, double-precision cross-layer transcoder in plain loops, with none of the
// library's kernels, collectives or memory. Every backend and every grid is compared with it; it is
// itself held to finite differences (dense_clt_test.cpp) and to the golden files of the Python
// reference. Letters: B tokens, L layers, d width, F features a layer.
// Source: reference-spec 4 to 7.3 (crosslayer-coding 9499108), our readings of its appendix B.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "clt/model/config.hpp"
#include "clt/model/shape.hpp"
#include "clt/train/config.hpp"

namespace clt::reference {

using Vector = std::vector<double>;

/// Parameters, and all that has their shape: gradients and Adam moments.
struct Parameters {
    Shape shape;
    std::vector<Vector> encoder;        // [L] of [F, d]
    std::vector<Vector> encoder_bias;   // [L] of [F]
    std::vector<Vector> decoder;        // [L] of [F, (L - layer) d]: targets layer, layer + 1, ...
    Vector decoder_bias;                // [L, d]
    std::vector<Vector> log_threshold;  // [L] of [F]; empty unless jumprelu

    /// Zeros.
    Parameters(const Shape& shape, bool thresholds);

    /// Every array under the name Params::arrays() gives it, in its order.
    std::vector<std::pair<std::string, Vector*>> arrays();
};

struct Batch {
    Index tokens = 0;
    Vector inputs;   // [B, L, d]
    Vector targets;  // [B, L, d]
};

struct Losses {
    double reconstruction = 0;
    double sparsity = 0;
    double preactivation = 0;
    double total = 0;
    Vector squared_error;  // [L] sum over tokens and d of (scale * (yhat - y))^2
};

struct Forward {
    Vector pre;             // [B, L, F] pre-activations
    std::vector<bool> on;   // [B, L, F] where a = p; elsewhere a = 0
    Vector activation;      // [B, L, F]
    Vector reconstruction;  // [B, L, d]
    Losses losses;
};

/// The `count` largest of the eligible scores; the lower index wins a tie, a NaN never does.
std::vector<bool> keep_largest(const Vector& scores, const std::vector<bool>& eligible,
                               Index count);

class DenseClt {
  public:
    /// error_scale: [L, d].
    DenseClt(const Shape& shape, const ModelConfig& model, const LossConfig& loss,
             Vector error_scale);

    Forward forward(const Parameters& params, const Batch& batch, double lambda) const;
    /// d total / d parameters with the set `on` held fixed; thresholds straight through.
    Parameters gradient(const Parameters& params, const Batch& batch, const Forward& at,
                        double lambda) const;

    // The forward pass in its pieces, so that tests can enter anywhere.
    Vector encode(const Parameters& params, const Batch& batch) const;  // [B, L, F]
    std::vector<bool> select(const Parameters& params, const Vector& pre, Index tokens) const;
    Vector decode(const Parameters& params, const Vector& activation, Index tokens) const;
    Losses losses(const Parameters& params, const Batch& batch, const Vector& pre,
                  const Vector& activation, double lambda) const;
    /// What batchtopk and topk rank by: pre itself or its z-score over the batch (ddof 1).
    Vector scores(const Vector& pre, Index tokens) const;
    /// [L, F] L2 norms of the decoder rows.
    Vector decoder_norms(const Parameters& params) const;

  private:
    Index at(Index token, Index layer, Index feature) const {
        return (token * shape_.layers + layer) * shape_.features + feature;
    }
    Index column(Index token, Index layer, Index i) const {
        return (token * shape_.layers + layer) * shape_.d_model + i;
    }
    double penalty_weight(double lambda, Index tokens) const;
    Vector activation_gradient(const Parameters& params, const Batch& batch, const Forward& at,
                               double lambda, const Vector& output_gradient,
                               Parameters& gradient) const;

    Shape shape_;
    ModelConfig model_;
    LossConfig loss_;
    Vector error_scale_;
};

/// Adam and AdamW over all parameters with clipping by the global norm.
/// reference_biases: the Python reference holds t + 1 biases for target t and the model adds them
/// up; all get the same gradient, so their sum moves t + 1 times as far, decays once, and counts
/// t + 1 times in the norm. It also decays biases and thresholds.
class Optimizer {
  public:
    Optimizer(const OptimizerConfig& config, const Shape& shape, bool thresholds);

    /// Returns the gradient's norm before clipping.
    double step(Parameters& params, Parameters gradient, double learning_rate);

    Parameters moment1;
    Parameters moment2;

  private:
    OptimizerConfig config_;
    Index steps_ = 0;
};

}  // namespace clt::reference
