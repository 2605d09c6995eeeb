#include "data/row_converter.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "clt/base/error.hpp"
#include "data/storage.hpp"

namespace clt {
namespace {

constexpr float std_floor = 1e-6F;  // the reference's

// A value beyond these is not an activation but damage (a flipped bit of the exponent makes 0.5 out
// to 9e18), and would train parameters to infinity.
//
// With statistics, sides of a layer have the limit
//     max |mean| + 1e6 · max std    over the columns.
// No value of n tokens lies further from their mean than sqrt(n) of their standard deviations
// (Samuelson 1968), a massive activation of 3000 at the first position among zeros included: 1e6 is
// out of reach below 1e12 tokens. As the widest column counts, statistics of fewer tokens or of
// another set refuse nothing honest either: for a layer whose columns have std <= 0.1 the limit is
// 1e5, the largest activations reported of language models are about 2e4.
constexpr double most_deviations = 1e6;
// Without statistics: the squares of 2^32 values (B · L · d) still add up to a finite float32.
constexpr float largest_without_statistics = 1e14F;

float largest_of(const ColumnStats& columns) {
    double mean = 0;
    double deviation = 0;
    for (const float m : columns.mean) mean = std::max(mean, std::abs(double{m}));
    for (const float d : columns.std) deviation = std::max(deviation, double{d});
    // All columns constant: they say nothing about scale.
    if (deviation == 0) return largest_without_statistics;
    return static_cast<float>(
        std::min(mean + most_deviations * deviation, double{std::numeric_limits<float>::max()}));
}

bool all_within(const float* values, Index n, float limit) {
    std::uint32_t largest = 0;  // magnitudes order as their bits; NaN and infinity come last
    for (Index i = 0; i < n; ++i)
        largest = std::max(largest, std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU);
    return largest <= std::bit_cast<std::uint32_t>(limit);
}

}  // namespace

RowConverter::RowConverter(const ActivationDataset& dataset, const Normalization& normalization)
    : layers_(dataset.layers()), d_model_(dataset.d_model()), dtype_(dataset.dtype()) {
    if (normalization.layers != layers_ || normalization.d_model != d_model_)
        user_error("{}: {} layers of width {}, but the model was trained on {} layers of width {}",
                   dataset.path(), layers_, d_model_, normalization.layers, normalization.d_model);
    const std::vector<LayerStats>& statistics =
        normalization.stats.empty() ? dataset.stats() : normalization.stats;
    for (const LayerStats& layer : statistics)
        for (const ColumnStats* columns : {&layer.inputs, &layer.targets})
            largest_.push_back(largest_of(*columns));
    largest_.resize(static_cast<std::size_t>(2 * layers_), largest_without_statistics);
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
    bool good = true;
    for (Index block = 0; block < 2 * layers_; ++block) {
        float* out = (block % 2 == 0 ? inputs : targets) + block / 2 * d_model_;
        to_float(dtype_, row + block * block_bytes, out, d_model_);
        good = all_within(out, d_model_, largest_[static_cast<std::size_t>(block)]) && good;
        if (!mean_.empty()) {
            const float* mean = mean_.data() + block * d_model_;
            const float* divisor = divisor_.data() + block * d_model_;
            for (Index c = 0; c < d_model_; ++c) out[c] = (out[c] - mean[c]) / divisor[c];
        } else if (factor_ != 1) {
            for (Index c = 0; c < d_model_; ++c) out[c] *= factor_;
        }
    }
    return good;
}

std::string RowConverter::describe_refused(const std::byte* row,
                                           const std::vector<Index>& layer_ids) const {
    std::vector<float> values(static_cast<std::size_t>(2 * layers_ * d_model_));
    to_float(dtype_, row, values.data(), static_cast<Index>(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::size_t block = i / static_cast<std::size_t>(d_model_);
        if (all_within(&values[i], 1, largest_[block])) continue;
        const std::string what = fmt::format("{} of layer {} = {}", dataset_parts[block % 2],
                                             layer_ids[block / 2], values[i]);
        if (!std::isfinite(values[i])) return what + ", expected finite activations";
        return fmt::format(
            "{} in column {}, beyond what an activation there can be ({:.1e}): "
            "damaged",
            what, i % static_cast<std::size_t>(d_model_), largest_[block]);
    }
    CLT_CHECK(false, "no value was refused");
    return {};
}

}  // namespace clt
