// Metrics as text: JSON lines, the live line, tables.
#include "clt/train/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clt/base/error.hpp"

namespace clt {
namespace {

using Json = nlohmann::ordered_json;  // writes NaN and infinity as null

template <class Get>
Json per_layer(const Evaluation& evaluation, Get get) {
    Json list = Json::array();
    for (const LayerEvaluation& layer : evaluation.layers) list.push_back(get(layer));
    return list;
}

Json json_of(const Evaluation& e) {
    using Layer = LayerEvaluation;
    Json j;
    j["tokens"] = e.tokens;
    j["finite"] = e.finite();
    if (!e.not_finite.empty()) j["not_finite"] = e.not_finite;
    j["nmse"] = e.nmse;
    j["explained_variance"] = e.explained_variance;
    j["nmse_pooled"] = e.nmse_pooled;
    j["explained_variance_pooled"] = e.explained_variance_pooled;
    j["l0"] = e.l0;
    j["l0_mean"] = e.l0_mean;
    j["sparsity_fraction"] = e.sparsity_fraction;
    j["density_mean"] = e.density_mean;
    j["log10_density_mean"] = e.log10_density_mean;
    j["active_tokens_mean"] = e.active_tokens_mean;
    j["dead_features"] = e.dead_features;
    j["nmse_per_layer"] = per_layer(e, [](const Layer& l) { return l.nmse; });
    j["explained_variance_per_layer"] =
        per_layer(e, [](const Layer& l) { return l.explained_variance; });
    j["mse_per_layer"] = per_layer(e, [](const Layer& l) { return l.mse; });
    j["target_variance_per_layer"] = per_layer(e, [](const Layer& l) { return l.target_variance; });
    j["l0_per_layer"] = per_layer(e, [](const Layer& l) { return l.l0; });
    j["density_mean_per_layer"] = per_layer(e, [](const Layer& l) { return l.density_mean; });
    j["log10_density_mean_per_layer"] =
        per_layer(e, [](const Layer& l) { return l.log10_density_mean; });
    j["dead_features_per_layer"] = per_layer(e, [](const Layer& l) { return l.dead_features; });
    j["log10_density_counts"] = e.log10_density_counts;
    return j;
}

double mean_of(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) /
           static_cast<double>(std::max<std::size_t>(values.size(), 1));
}

Index sum_of(const std::vector<Index>& values) {
    return std::accumulate(values.begin(), values.end(), Index{0});
}

}  // namespace

std::string to_json(const Evaluation& evaluation) {
    return json_of(evaluation).dump();
}

std::string to_json(const TrainingRecord& record) {
    const StepResult& result = record.result;
    Json j;
    j["step"] = record.step;
    j["tokens"] = record.tokens;
    j["finite"] = result.finite;
    if (!result.finite) j["not_finite"] = result.not_finite;
    j["loss"] = result.total;
    j["reconstruction"] = result.reconstruction;
    j["sparsity"] = result.sparsity;
    j["preactivation"] = result.preactivation;
    j["learning_rate"] = record.learning_rate;
    j["lambda"] = record.sparsity_weight;
    if (result.gradient_norm != 0) j["gradient_norm"] = result.gradient_norm;
    // The lowest float stands for "everything was kept".
    j["threshold"] =
        result.threshold > std::numeric_limits<float>::lowest() ? Json(result.threshold) : Json();
    j["l0"] = std::accumulate(result.l0.begin(), result.l0.end(), 0.0);
    j["nmse"] = mean_of(record.nmse);
    j["dead_features"] = sum_of(record.dead_features);
    j["l0_per_layer"] = result.l0;
    j["nmse_per_layer"] = record.nmse;
    j["dead_features_per_layer"] = record.dead_features;
    j["dense"] = result.dense;
    j["selection_retries"] = record.selection_retries;
    j["tokens_per_s"] = record.tokens_per_s;
    j["step_s"] = record.interval_s / static_cast<double>(record.interval_steps);
    j["wait_for_data_s"] = record.wait_for_data_s;
    Json stages = Json::object();
    for (const auto& [name, seconds] : record.stages_s) stages[name] = seconds;
    j["stages_s"] = std::move(stages);
    if (record.records_lost > 0) j["records_lost"] = record.records_lost;
    return record.evaluation ? with_evaluation(j.dump(), *record.evaluation) : j.dump();
}

std::string with_evaluation(const std::string& record, const Evaluation& evaluation) {
    CLT_CHECK(record.ends_with('}'));
    return record.substr(0, record.size() - 1) + R"(,"evaluation":)" + to_json(evaluation) + "}";
}

std::string format_duration(double seconds) {
    const auto s = static_cast<Index>(std::clamp(std::round(seconds), 0.0, 1e9));
    if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
    return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::string live_line(const TrainingRecord& record, Index steps, double left_s) {
    const double l0 = std::accumulate(record.result.l0.begin(), record.result.l0.end(), 0.0);
    return fmt::format(
        "step {}/{}  loss {:.4g}  L0 {:.1f}  NMSE {:.4f}{}  dead {}  {:.0f} tokens/s  waiting "
        "{:.1f}%  {} left",
        record.step, steps, record.result.total, l0, mean_of(record.nmse),
        record.evaluation ? fmt::format(" (held out {:.4f})", record.evaluation->nmse) : "",
        sum_of(record.dead_features), record.tokens_per_s,
        record.interval_s > 0 ? 100 * record.wait_for_data_s / record.interval_s : 0.0,
        format_duration(left_s));
}

std::string table_of(const Evaluation& e) {
    std::string text = fmt::format("{:>5}  {:>8}  {:>12}  {:>8}  {:>10}  {:>6}\n", "layer", "NMSE",
                                   "expl. var.", "L0", "density", "dead");
    for (std::size_t l = 0; l < e.layers.size(); ++l) {
        const LayerEvaluation& layer = e.layers[l];
        text += fmt::format("{:>5}  {:>8.4f}  {:>12.4f}  {:>8.2f}  {:>10.3e}  {:>6}\n", l,
                            layer.nmse, layer.explained_variance, layer.l0, layer.density_mean,
                            layer.dead_features);
    }
    return text + fmt::format("{:>5}  {:>8.4f}  {:>12.4f}  {:>8.2f}  {:>10.3e}  {:>6}\n", "all",
                              e.nmse, e.explained_variance, e.l0, e.density_mean, e.dead_features);
}

}  // namespace clt
