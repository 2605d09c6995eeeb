// A stored row of activations to what the model sees: float32, normalised (reference-spec 3.5).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "clt/data/training_data.hpp"

namespace clt {

class RowConverter {
  public:
    /// dataset: how rows are stored; normalization: that of the training data, also for evaluation.
    /// Throws UserError when the data set has another number of layers or another width.
    RowConverter(const ActivationDataset& dataset, const Normalization& normalization);

    Index row_bytes() const { return 2 * layers_ * d_model_ * size_of(dtype_); }

    /// row: [L, 2, d] stored elements; inputs, targets: [L, d].
    /// none: x; mean_std: (x - mean) / (std + 1e-6); sqrt_d_model: x * sqrt(d).
    /// False when an element is NaN, infinite or larger than any activation can be.
    bool convert(const std::byte* row, float* inputs, float* targets) const;

    /// "inputs of layer 3 = nan, expected finite activations" for a row that convert() refused.
    std::string describe_refused(const std::byte* row, const std::vector<Index>& layer_ids) const;

    /// [L, d], see BatchSource.
    const std::vector<float>& error_scale() const { return error_scale_; }

  private:
    Index layers_;
    Index d_model_;
    DType dtype_;
    float factor_ = 1;
    std::vector<float> largest_;         // [L, 2], of a magnitude that counts as an activation
    std::vector<float> mean_, divisor_;  // [L, 2, d], empty without mean_std
    std::vector<float> error_scale_;
};

}  // namespace clt
