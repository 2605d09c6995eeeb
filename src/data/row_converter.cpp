#include "data/row_converter.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "clt/base/error.hpp"
#include "data/storage.hpp"

namespace clt {
namespace {

constexpr float std_floor = 1e-6F;  // the reference's

bool all_finite(const float* values, Index n) {
    std::uint32_t largest = 0;  // magnitudes order as their bits; NaN and infinity come last
    for (Index i = 0; i < n; ++i)
        largest = std::max(largest, std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU);
    return largest < 0x7F800000U;
}

}  // namespace

RowConverter::RowConverter(const ActivationDataset& dataset, const Normalization& normalization)
    : layers_(dataset.layers()), d_model_(dataset.d_model()), dtype_(dataset.dtype()) {
    if (normalization.layers != layers_ || normalization.d_model != d_model_)
        user_error("{}: {} layers of width {}, but the model was trained on {} layers of width {}",
                   dataset.path(), layers_, d_model_, normalization.layers, normalization.d_model);
    const auto width = static_cast<std::size_t>(layers_ * d_model_);
    error_scale_.assign(width, 1.0F);
    if (normalization.method == "sqrt_d_model") {
        factor_ = std::sqrt(static_cast<float>(d_model_));
        error_scale_.assign(width, 1.0F / factor_);
    } else if (normalization.method == "mean_std") {
        CLT_CHECK(static_cast<Index>(normalization.stats.size()) == layers_);
        error_scale_.clear();
        for (const LayerStats& layer : normalization.stats) {
            for (const ColumnStats* columns : {&layer.inputs, &layer.targets}) {
                mean_.insert(mean_.end(), columns->mean.begin(), columns->mean.end());
                for (const float deviation : columns->std)
                    divisor_.push_back(deviation + std_floor);
            }
            for (const float deviation : layer.targets.std)
                error_scale_.push_back(deviation + std_floor);
        }
    } else {
        CLT_CHECK(normalization.method == "none", "normalization {}", normalization.method);
    }
}

bool RowConverter::convert(const std::byte* row, float* inputs, float* targets) const {
    const Index block_bytes = d_model_ * size_of(dtype_);
    bool finite = true;
    for (Index block = 0; block < 2 * layers_; ++block) {
        float* out = (block % 2 == 0 ? inputs : targets) + block / 2 * d_model_;
        to_float(dtype_, row + block * block_bytes, out, d_model_);
        finite = all_finite(out, d_model_) && finite;
        if (!mean_.empty()) {
            const float* mean = mean_.data() + block * d_model_;
            const float* divisor = divisor_.data() + block * d_model_;
            for (Index c = 0; c < d_model_; ++c) out[c] = (out[c] - mean[c]) / divisor[c];
        } else if (factor_ != 1) {
            for (Index c = 0; c < d_model_; ++c) out[c] *= factor_;
        }
    }
    return finite;
}

std::string RowConverter::describe_not_finite(const std::byte* row,
                                              const std::vector<Index>& layer_ids) const {
    std::vector<float> values(static_cast<std::size_t>(2 * layers_ * d_model_));
    to_float(dtype_, row, values.data(), static_cast<Index>(values.size()));
    const auto bad =
        std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
    CLT_CHECK(bad != values.end());
    const Index block = (bad - values.begin()) / d_model_;
    return fmt::format("{} of layer {} = {}", dataset_parts[static_cast<std::size_t>(block % 2)],
                       layer_ids[static_cast<std::size_t>(block / 2)], *bad);
}

}  // namespace clt
