// What kernels are told, as plain structs, and the order of scores. A page without our other types,
// so that device code can include it.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "clt/base/types.hpp"

#if defined(__CUDACC__)
#define CLT_HOST_DEVICE __host__ __device__
#else
#define CLT_HOST_DEVICE
#endif

namespace clt {

enum class Activation { batchtopk, topk, jumprelu, relu };

/// Whether entries compete, so that they have scores.
constexpr bool is_ranked(Activation activation) {
    return activation == Activation::batchtopk || activation == Activation::topk;
}

/// A language model's non-linearity: gelu by the tanh formula (GPT-2) or by erf.
enum class MlpActivation { gelu_tanh, gelu_erf, relu };

/// Which pre-activations of a tile become candidates.
struct CollectRule {
    Activation activation = Activation::batchtopk;
    bool zscore = false;         // score = (p - mean) / (std + 1e-6), columns' statistics given
    bool keep_negative = false;  // topk kinds: p <= 0 may be kept
    float half_window = 0;       // jumprelu: entries with |p - theta| <= half_window are kept too
};

/// Where an entry stands among its equals: lower (token, layer, feature) wins a tie.
struct PositionMap {
    Index local_features = 0;   // F_p: row = layer * F_p + feature
    Index global_features = 0;  // F
    Index first_feature = 0;    // global id of local feature 0
    Index layers = 0;
    Index first_token = 0;  // global id of local token 0

    /// per_token: every token is cut by itself, so positions count inside a token.
    CLT_HOST_DEVICE std::uint64_t position(std::int32_t row, std::int32_t token,
                                           bool per_token) const {
        const Index layer = row / local_features;
        const Index column = layer * global_features + first_feature + row - layer * local_features;
        if (per_token) return static_cast<std::uint64_t>(column);
        const Index columns = layers * global_features;
        return static_cast<std::uint64_t>((first_token + token) * columns + column);
    }
};

/// Order-preserving map from float to unsigned: a < b <=> ordered_key(a) < ordered_key(b) for all
/// numbers, with -0 == +0. NaN maps to 0, below every number.
CLT_HOST_DEVICE inline std::uint32_t ordered_key(float value) {
    if (!(value == value)) return 0;
    const auto bits = std::bit_cast<std::uint32_t>(value + 0.0F);  // -0 becomes +0
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
/// Inverse of ordered_key on its range (0 gives -infinity).
CLT_HOST_DEVICE inline float value_of_key(std::uint32_t key) {
    if (key <= 0x007FFFFFU) return -std::numeric_limits<float>::infinity();
    return std::bit_cast<float>((key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key);
}

}  // namespace clt
