// Adam's arithmetic for one element, the same on every backend. Source: Kingma & Ba 2015, algorithm
// 1; decoupled decay: Loshchilov & Hutter 2019, algorithm 2. A page without our other types, so
// that device code can include it.
#pragma once

#include <cmath>
#include <limits>

#include "clt/backend/plain.hpp"

namespace clt {

/// The scalars of one optimiser step.
struct AdamStep {
    float step_size = 0;  // lr / (1 - beta1^t)
    float decay = 0;      // lr * weight decay
    float beta1 = 0.9F;
    float beta2 = 0.999F;
    float epsilon = 1e-8F;
    float inverse_root_correction2 = 1;  // 1 / sqrt(1 - beta2^t)
    float gradient_scale = 1;            // clipping
    // 1 - beta, rounded from double as PyTorch has it: formed in float it is off by 1e-5 at 0.999
    // and 0 at 0.999999999.
    float rest1 = 0.1F;
    float rest2 = 0.001F;
    // A parameter beyond this counts as not finite.
    float largest_value = std::numeric_limits<float>::max();
};

/// p, m, v are updated in place with gradient g. Returns whether they are finite: |m| never exceeds
/// the largest |g| so far, and a g that is not finite shows in v, so m needs no look.
CLT_HOST_DEVICE inline bool adam_update(const AdamStep& s, float g, float& p, float& m, float& v) {
    g *= s.gradient_scale;
    m = s.beta1 * m + s.rest1 * g;
    v = s.beta2 * v + s.rest2 * g * g;
    p = p - s.decay * p - s.step_size * m / (std::sqrt(v) * s.inverse_root_correction2 + s.epsilon);
    constexpr float largest = std::numeric_limits<float>::max();
    return (std::fabs(p) <= s.largest_value) & (v <= largest);  // no branch: loops vectorise
}

}  // namespace clt
