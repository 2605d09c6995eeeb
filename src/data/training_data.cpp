#include "clt/data/training_data.hpp"

#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"
#include "clt/io/json.hpp"

namespace clt {

Normalization normalization_of(const ActivationDataset& dataset, const std::string& method) {
    Normalization normalization{method, dataset.layers(), dataset.d_model(), {}};
    if (method != "mean_std") return normalization;
    if (dataset.stats().empty())
        user_error(
            "{}/norm_stats.json: missing, or without some of the {} layers; data.normalization = "
            "\"mean_std\" needs it",
            dataset.path(), dataset.layers());
    normalization.stats = dataset.stats();
    return normalization;
}

TrainingData training_data(const ActivationDataset& dataset, const std::string& method) {
    TrainingData data;
    data.fingerprint = dataset.fingerprint();
    const JsonObject metadata =
        JsonObject::parse(dataset.metadata(), dataset.path() + "/metadata.json");
    const auto text_or_nothing = [&](const char* key) {
        return metadata.has(key) && metadata.json()[key].is_string() ? metadata.text(key)
                                                                     : std::string();
    };
    data.language_model = text_or_nothing("model_name");
    data.input_tap = text_or_nothing("input_tap");
    data.target_tap = text_or_nothing("target_tap");
    data.layer_ids = dataset.layer_ids();
    data.normalization = normalization_of(dataset, method);
    return data;
}

}  // namespace clt
