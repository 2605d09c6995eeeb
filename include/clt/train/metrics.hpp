// What a run and an evaluation report, computed in one place for `clt train` and `clt evaluate`.
// Everything is in the original units of the activations. Source: reference-spec section 8.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clt/data/batch_source.hpp"
#include "clt/model/step.hpp"

namespace clt {

/// One layer of an evaluation. Variances are population variances over the tokens (ddof 0),
/// averaged over the d columns.
struct LayerEvaluation {
    double mse = 0;              // mean over tokens and d of e^2
    double target_variance = 0;  // of y
    double error_variance = 0;   // of e: a constant offset does not count
    /// 1 - error_variance / target_variance. A constant target (variance <= 1e-9): 1 when the
    /// error's variance is < 1e-9 too, else 0.
    double explained_variance = 0;
    /// mse / target_variance. A constant target: 0 when mse < 1e-9, else infinity.
    double nmse = 0;
    double l0 = 0;                  // mean features with a != 0 a token (negatives count)
    double density_mean = 0;        // mean over features of the fraction of tokens with a > 1e-6
    double log10_density_mean = 0;  // mean over features of log10(that fraction + 1e-10)
    Index dead_features = 0;        // never fired (a > 1e-6) in this pass
};

/// An evaluation of N tokens. Names in the Python reference:
///   nmse                   reconstruction/normalized_mean_reconstruction_error, layerwise/...
///   explained_variance     reconstruction/explained_variance (clamped), layerwise/... (not
///   clamped) l0, l0_mean            sparsity/total_l0, sparsity/avg_l0, layerwise/l0
///   sparsity_fraction      sparsity/sparsity_fraction
///   log10_density_mean     sparsity/feature_density_mean (there a misnomer)
///   active_tokens_mean     sparsity/consistent_activation_heuristic_mean
///   log10_density_counts   sparsity/log_feature_density_agg_hist, binned
/// The reference's dead_features/total_eval counts features silent for dead_window training steps;
/// that is `dead_features` of a training record, while here it is those silent in this pass.
struct Evaluation {
    static constexpr int density_bins = 20;  // of log10(density + 1e-10), over [-10, 0]

    Index tokens = 0;
    std::vector<LayerEvaluation> layers;
    double explained_variance = 0;            // mean over layers, clamped to [0, 1]
    double explained_variance_pooled = 0;     // 1 - sum of error variances / sum of variances
    double nmse = 0;                          // mean over layers, may be infinite
    double nmse_pooled = 0;                   // sum of mse / sum of variances
    double l0 = 0;                            // sum over layers
    double l0_mean = 0;                       // mean over layers
    double sparsity_fraction = 0;             // 1 - l0_mean / F, clamped to [0, 1]
    double density_mean = 0;                  // over all features
    double log10_density_mean = 0;            // over all features
    double active_tokens_mean = 0;            // over all features: tokens on which one fires
    Index dead_features = 0;                  // sum over layers
    std::vector<Index> log10_density_counts;  // [density_bins] features in each bin

    std::string not_finite;  // the first of the pass: "the inputs of layer 1"; empty: nothing

    bool finite() const;
};

/// Sums of tokens become metrics. sums.tokens must be > 0.
Evaluation evaluation_of(const Step::EvaluationSums& sums, const Shape& shape);

/// One pass of `source` through the step's forward half; nothing when a stop was requested before
/// its end. Collective over all, the step's grid. Throws UserError when the source has no tokens.
std::optional<Evaluation> evaluate_pass(Step& step, BatchSource& source, const Shape& shape,
                                        const Communicator& all);

/// NMSE of each layer from a step's squared errors [L] (summed over tokens and d) and its targets'
/// variances [L] (see batch_target_variance), by the rule of LayerEvaluation::nmse.
std::vector<double> batch_nmse(const std::vector<double>& squared_error,
                               const std::vector<double>& target_variance, Index tokens,
                               Index d_model);

/// Variance of each layer's targets over the whole batch, in original units, mean over d: [L].
/// error_scale: see BatchSource. Collective over grid.all().
std::vector<double> batch_target_variance(const HostBatch& batch,
                                          const std::vector<float>& error_scale, Index layers,
                                          const Communicator& all);

/// One line of metrics.jsonl. Times cover the steps since the last record.
struct TrainingRecord {
    Index step = 0;    // steps done; the losses are those this step computed before its update
    Index tokens = 0;  // seen since the run began
    StepResult result;
    double learning_rate = 0;
    double sparsity_weight = 0;        // lambda(t)
    std::vector<double> nmse;          // [L] of this step's batch
    std::vector<Index> dead_features;  // [L] silent for more than log.dead_window steps
    Index interval_steps = 1;          // since the last record
    double interval_s = 0;             // their wall time, waiting included
    double tokens_per_s = 0;
    double wait_for_data_s = 0;  // of interval_s, the slowest rank's
    Index selection_retries = 0;
    std::vector<std::pair<std::string, double>> stages_s;  // rank 0, mean of a step
    std::optional<Evaluation> evaluation;                  // held-out tokens
    Index records_lost = 0;  // since the last one that could be written
};

/// JSON objects on one line; a number that is not finite is null and makes "finite" false.
std::string to_json(const TrainingRecord& record);
std::string to_json(const Evaluation& evaluation);
/// to_json(record) of a record that gets its evaluation afterwards.
std::string with_evaluation(const std::string& record, const Evaluation& evaluation);

/// What the live line says: "step 1200/5000  loss 0.341  L0 63.9  NMSE 0.312  dead 12  8123
/// tokens/s  waiting 0.4%  8:31 left".
std::string live_line(const TrainingRecord& record, Index steps, double left_s);

/// "8:31", "1:02:03".
std::string format_duration(double seconds);

/// Per layer and total, for people.
std::string table_of(const Evaluation& evaluation);

}  // namespace clt
