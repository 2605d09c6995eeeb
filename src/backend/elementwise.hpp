// The formulas of one element, the same on every backend: activations, the straight-through
// threshold gradient, z-scores, the tanh penalty. A page without our other types, so that device
// code can include it. Source: Rajamanoharan et al. 2024 (JumpReLU SAEs), equations 11 and 12; the
// window and its factor -p as in reference-spec 5.2.
#pragma once

#include <cmath>

#include "clt/backend/adam.hpp"

namespace clt {

/// A feature fires on a token when its activation is over this.
inline constexpr float fired_above = 1e-6F;

/// By double, so that backends whose exp rounds differently agree on the edge, which is inclusive.
CLT_HOST_DEVICE inline float jumprelu_threshold(float log_threshold) {
    return static_cast<float>(std::exp(static_cast<double>(log_threshold)));
}

/// theta is inclusive; a NaN gives 0.
CLT_HOST_DEVICE inline float jumprelu(float p, float theta) {
    return p >= theta ? p : 0.0F;
}

/// Where the threshold gets a gradient; both edges are inclusive, a NaN is outside.
CLT_HOST_DEVICE inline bool in_window(float p, float theta, float half_window) {
    return std::fabs(p - theta) <= half_window;
}

/// A column's mean and standard deviation (ddof 1), as the z-score takes them.
struct ColumnMoments {
    float mean = 0;
    float deviation = 0;  // std + 1e-6
};

/// From sums of p and p^2 over n tokens. n = 1 gives NaN, as ddof 1 has it.
CLT_HOST_DEVICE inline ColumnMoments column_moments(double sum, double sum_squared, double n) {
    const double mean = sum / n;
    const double variance = (sum_squared - sum * mean) / (n - 1);
    // Cancellation may leave a constant column a hair below 0; a NaN stays one.
    const double deviation = std::sqrt(variance < 0 ? 0 : variance);
    return {static_cast<float>(mean), static_cast<float>(deviation + 1e-6)};
}

CLT_HOST_DEVICE inline float zscore(float p, ColumnMoments column) {
    return (p - column.mean) / column.deviation;
}

/// One entry of the penalty tanh(c * norm * a): its value and its derivative by c * norm * a.
struct TanhPenalty {
    float value = 0;
    float slope = 1;
};
CLT_HOST_DEVICE inline TanhPenalty tanh_penalty(float scaled_norm, float activation) {
    if (activation == 0) return {};
    const float t = std::tanh(scaled_norm * activation);
    return {t, 1.0F - t * t};
}

}  // namespace clt
