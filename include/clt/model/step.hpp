// One training step, and the forward half for evaluation, on a grid of ranks. Letters: B tokens of
// the step over all replicas, L layers, d width, F features a layer.
//   p_l = W_enc_l x_l + b_enc_l                      a = activation(p)  (batchtopk: global)
//   yhat_t = sum_{s <= t} a_s W_dec_{s->t} + b_t     e = scale * (yhat - y)
//   loss = sum_l mean_{B,d} e^2 + lambda(t) * penalty + preactivation
// Source: crosslayer-coding's losses (reference-spec 5 and 6).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/backend/host_batch.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/model/config.hpp"
#include "clt/model/params.hpp"

namespace clt {

/// What changes from step to step; the trainer's schedules fill it.
struct StepScalars {
    AdamStep adam;                  // weights; gradient_scale is set by the step when clipping
    AdamStep adam_bias;             // biases and thresholds (no decay unless reference_biases)
    bool reference_biases = false;  // target t's bias moves t + 1 times as far (see config)
    double gradient_clip = 0;       // largest global norm, 0: none
    double sparsity = 0;            // lambda(t), 0: no penalty
};

/// Equal on every rank.
struct StepResult {
    double reconstruction = 0;
    double sparsity = 0;
    double preactivation = 0;
    double total = 0;
    double gradient_norm = 0;  // only with clipping, else 0
    bool finite = true;        // false: nothing was updated
    std::string not_finite;    // then what was not: "the inputs of layer 1", ...
    /// Then whether it is a parameter or moment: an update before this step broke it, which cannot
    /// be undone.
    bool parameters_broken = false;
    std::vector<double> l0;             // [L] mean active features a token
    std::vector<double> squared_error;  // [L] sum over tokens and d of e^2, original units
    double threshold = 0;               // batchtopk: the lowest score kept
    Index selection_retries = 0;        // 1: the bound carried over was too high, encode ran again
    bool dense = false;                 // relu, jumprelu: the dense decode ran
};

class Step {
  public:
    /// error_scale [L, d]: see BatchSource. max_tokens: the largest B of any call. Collective over
    /// grid.all(). References must outlive the step.
    Step(Backend& backend, const ProcessGrid& grid, Params& params, const ModelConfig& model,
         const LossConfig& loss, const std::vector<float>& error_scale, Index max_tokens);
    ~Step();

    /// Forward, backward, update. Collective over grid.all(). Throws LibraryError.
    StepResult train(const HostBatch& batch, const StepScalars& scalars);

    /// Which parameter or moment written so far is not finite, "" when all are; to be asked before
    /// they are kept, as train() reports a broken update one step later. Waits for the updates.
    /// Collective over grid.all().
    std::string not_finite();

    /// Forward only; adds to the sums and counters below. Collective.
    StepResult evaluate(const HostBatch& batch);

    /// What evaluate() gathered since the last reset, over all ranks, in original units.
    /// Collective.
    struct EvaluationSums {
        Index tokens = 0;
        std::vector<double> target, target_squared, error, error_squared;  // [L, d]
        std::vector<Index> active_tokens, fired_tokens;  // [L, F]: tokens with a != 0, a > 1e-6
    };
    EvaluationSums evaluation_sums();
    void reset_evaluation();

    /// Steps since each local feature fired (a > 1e-6 on any token), [L * F_p]; for checkpoints.
    Span<Index> silence();
    /// Features over all ranks silent for more than `window` steps, by layer. Collective.
    std::vector<Index> dead_features(Index window);

    /// Seconds of each stage since the last call, on this rank, in the order of the step.
    std::vector<std::pair<std::string, double>> take_stage_seconds();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace clt
