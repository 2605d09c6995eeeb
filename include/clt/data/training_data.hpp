// What a model remembers of the activations it was trained on, so that it can be used without them:
// how they were scaled, with the numbers, and what they were.
#pragma once

#include <string>
#include <vector>

#include "clt/data/dataset.hpp"

namespace clt {

/// How inputs and targets are scaled (DataConfig::normalization), with the numbers.
struct Normalization {
    std::string method = "none";
    Index layers = 0;  // of the activations they are for
    Index d_model = 0;
    std::vector<LayerStats> stats;  // mean_std: of every layer; else empty
};

struct TrainingData {
    std::string fingerprint;  // ActivationDataset::fingerprint()
    /// As metadata.json says; empty where it does not.
    std::string language_model, input_tap, target_tap;
    std::vector<Index> layer_ids;  // numbers of the language model's layers
    Normalization normalization;
};

/// Of a data set scaled by its own statistics. Throws UserError when mean_std finds none.
Normalization normalization_of(const ActivationDataset& dataset, const std::string& method);
TrainingData training_data(const ActivationDataset& dataset, const std::string& method);

}  // namespace clt
