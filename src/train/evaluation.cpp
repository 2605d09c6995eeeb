// Sums to metrics.
#include <algorithm>
#include <cmath>
#include <limits>

#include "clt/train/metrics.hpp"

namespace clt {
namespace {

// Below this a variance counts as zero (the reference's constant).
constexpr double no_variance = 1e-9;
// Keeps the logarithm of an empty density finite (the reference's constant).
constexpr double density_floor = 1e-10;

double ratio_nmse(double mse, double variance) {
    if (variance > no_variance) return mse / variance;
    if (std::isnan(mse) || std::isnan(variance)) return std::numeric_limits<double>::quiet_NaN();
    return mse < no_variance ? 0 : std::numeric_limits<double>::infinity();
}

double ratio_explained(double error_variance, double variance) {
    if (variance > no_variance) return 1 - error_variance / variance;
    if (std::isnan(error_variance) || std::isnan(variance))
        return std::numeric_limits<double>::quiet_NaN();
    return error_variance < no_variance ? 1 : 0;
}

// Mean over [begin, end) of the population variances of columns with these sums over n tokens.
double mean_variance(const std::vector<double>& sum, const std::vector<double>& squared,
                     std::size_t begin, std::size_t end, double n) {
    double total = 0;
    for (std::size_t i = begin; i < end; ++i) {
        const double mean = sum[i] / n;
        const double variance = squared[i] / n - mean * mean;
        total += variance < 0 ? 0 : variance;  // rounding may leave -1e-17; a NaN passes
    }
    return total / static_cast<double>(end - begin);
}

}  // namespace

bool Evaluation::finite() const {
    return not_finite.empty() && std::isfinite(nmse) && std::isfinite(explained_variance) &&
           std::isfinite(l0);
}

Evaluation evaluation_of(const Step::EvaluationSums& sums, const Shape& shape) {
    CLT_CHECK(sums.tokens > 0);
    const auto n = static_cast<double>(sums.tokens);
    const auto d = static_cast<std::size_t>(shape.d_model);
    const auto features = static_cast<std::size_t>(shape.features);
    const auto layers = static_cast<double>(shape.layers);

    Evaluation all;
    all.tokens = sums.tokens;
    all.log10_density_counts.assign(Evaluation::density_bins, 0);
    double variance_sum = 0;
    double error_variance_sum = 0;
    double mse_sum = 0;
    for (std::size_t l = 0; l < static_cast<std::size_t>(shape.layers); ++l) {
        LayerEvaluation layer;
        double squared = 0;
        for (std::size_t i = l * d; i < (l + 1) * d; ++i) squared += sums.error_squared[i];
        layer.mse = squared / (n * static_cast<double>(d));
        layer.target_variance =
            mean_variance(sums.target, sums.target_squared, l * d, (l + 1) * d, n);
        layer.error_variance = mean_variance(sums.error, sums.error_squared, l * d, (l + 1) * d, n);
        layer.nmse = ratio_nmse(layer.mse, layer.target_variance);
        layer.explained_variance = ratio_explained(layer.error_variance, layer.target_variance);

        Index active = 0;
        Index fired = 0;
        for (std::size_t f = l * features; f < (l + 1) * features; ++f) {
            active += sums.active_tokens[f];
            fired += sums.fired_tokens[f];
            if (sums.fired_tokens[f] == 0) ++layer.dead_features;
            const double log10_density =
                std::log10(static_cast<double>(sums.fired_tokens[f]) / n + density_floor);
            layer.log10_density_mean += log10_density / static_cast<double>(features);
            const auto bin = static_cast<int>((log10_density + 10) / 10 * Evaluation::density_bins);
            ++all.log10_density_counts[static_cast<std::size_t>(
                std::clamp(bin, 0, Evaluation::density_bins - 1))];
        }
        layer.l0 = static_cast<double>(active) / n;
        layer.density_mean = static_cast<double>(fired) / n / static_cast<double>(features);

        all.l0 += layer.l0;
        all.dead_features += layer.dead_features;
        all.nmse += layer.nmse / layers;
        all.explained_variance += layer.explained_variance / layers;
        all.density_mean += layer.density_mean / layers;
        all.log10_density_mean += layer.log10_density_mean / layers;
        variance_sum += layer.target_variance;
        error_variance_sum += layer.error_variance;
        mse_sum += layer.mse;
        all.layers.push_back(layer);
    }
    all.explained_variance = std::clamp(all.explained_variance, 0.0, 1.0);
    all.nmse_pooled = ratio_nmse(mse_sum, variance_sum);
    all.explained_variance_pooled = ratio_explained(error_variance_sum, variance_sum);
    all.l0_mean = all.l0 / layers;
    all.sparsity_fraction =
        std::clamp(1 - all.l0_mean / static_cast<double>(shape.features), 0.0, 1.0);
    all.active_tokens_mean = all.density_mean * n;
    return all;
}

std::optional<Evaluation> evaluate_pass(Step& step, BatchSource& source, const Shape& shape,
                                        const Communicator& all) {
    step.reset_evaluation();
    std::string not_finite;
    for (HostBatch batch = source.next(); batch.tokens > 0; batch = source.next()) {
        if (all.stop_requested_anywhere()) return std::nullopt;
        StepResult result = step.evaluate(batch);
        if (not_finite.empty()) not_finite = std::move(result.not_finite);
    }
    const Step::EvaluationSums sums = step.evaluation_sums();
    if (sums.tokens == 0) user_error("the evaluation data has no tokens");
    Evaluation evaluation = evaluation_of(sums, shape);
    evaluation.not_finite = std::move(not_finite);
    return evaluation;
}

std::vector<double> batch_nmse(const std::vector<double>& squared_error,
                               const std::vector<double>& target_variance, Index tokens,
                               Index d_model) {
    std::vector<double> nmse;
    for (std::size_t l = 0; l < squared_error.size(); ++l)
        nmse.push_back(ratio_nmse(squared_error[l] / static_cast<double>(tokens * d_model),
                                  target_variance[l]));
    return nmse;
}

std::vector<double> batch_target_variance(const HostBatch& batch,
                                          const std::vector<float>& error_scale, Index layers,
                                          const Communicator& all) {
    const auto width = static_cast<Index>(error_scale.size());  // L * d
    const Index d = width / layers;
    std::vector<double> sums(static_cast<std::size_t>(2 * width), 0.0);
    double* const sum = sums.data();
    double* const squared = sum + width;
#pragma omp parallel for schedule(static)
    for (Index layer = 0; layer < layers; ++layer) {
        for (Index token = 0; token < batch.slice.size(); ++token) {
            const float* row = batch.targets.data() + token * width;
            for (Index c = layer * d; c < (layer + 1) * d; ++c) {
                const auto y = static_cast<double>(row[c]);
                sum[c] += y;
                squared[c] += y * y;
            }
        }
    }
    all.all_reduce_sum(std::span<double>(sums));
    // The scale maps differences, so it maps variances by its square.
    std::vector<double> variance(static_cast<std::size_t>(layers), 0.0);
    const auto n = static_cast<double>(batch.tokens);
    for (Index c = 0; c < width; ++c) {
        const double mean = sum[c] / n;
        const auto scale = static_cast<double>(error_scale[static_cast<std::size_t>(c)]);
        const double column = squared[c] / n - mean * mean;
        variance[static_cast<std::size_t>(c / d)] +=
            (column < 0 ? 0 : column) * scale * scale / static_cast<double>(d);
    }
    return variance;
}

}  // namespace clt
