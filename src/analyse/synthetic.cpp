#include "analyse/synthetic.hpp"

#include <algorithm>
#include <array>

#include "clt/base/philox.hpp"

namespace clt {
namespace {

constexpr std::uint64_t seed = 1;
constexpr Index directions = 64;
constexpr int active_directions = 8;  // of a token
constexpr float noise = 0.1F;
// Ids of the three kinds of numbers lie apart.
constexpr std::uint64_t coefficient_ids = std::uint64_t{1} << 40;
constexpr std::uint64_t noise_ids = std::uint64_t{1} << 48;

float uniform(std::uint64_t id, float low, float high) {
    return random_uniform(seed, RandomPurpose::synthetic_batch, id, low, high);
}

struct Term {
    Index direction;
    float coefficient;
};

std::array<Term, active_directions> mixture_of(Index token) {
    std::array<Term, active_directions> terms{};
    std::uint64_t id = coefficient_ids + static_cast<std::uint64_t>(token) * 2 * active_directions;
    for (Term& term : terms) {
        term.direction =
            static_cast<Index>(random_bits(seed, RandomPurpose::synthetic_batch, id) % directions);
        term.coefficient = uniform(id + 1, 0.5F, 1.5F);
        id += 2;
    }
    return terms;
}

}  // namespace

SyntheticBatch::SyntheticBatch(Index number, Index tokens, Index layers, Index d_model,
                               const ProcessGrid& grid)
    : tokens_(tokens), slice_(grid.token_slice(tokens)) {
    const Index width = layers * d_model;
    std::vector<float> direction(static_cast<std::size_t>(directions * width));  // [J, L, d]
    for (std::size_t i = 0; i < direction.size(); ++i)
        direction[i] = uniform(static_cast<std::uint64_t>(i), -1, 1);
    inputs_.resize(static_cast<std::size_t>(slice_.size() * width));
    targets_.resize(inputs_.size());
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < slice_.size(); ++t) {
        const Index token = number * tokens + slice_.begin + t;
        float* x = inputs_.data() + t * width;
        float* y = targets_.data() + t * width;
        for (Index i = 0; i < width; ++i)
            x[i] =
                uniform(noise_ids + static_cast<std::uint64_t>(token * width + i), -noise, noise);
        for (const Term& term : mixture_of(token)) {
            const float* row = direction.data() + term.direction * width;
            for (Index i = 0; i < width; ++i) x[i] += term.coefficient * row[i];
        }
        for (Index layer = 0; layer < layers; ++layer) {
            const float* before = x + std::max<Index>(layer - 1, 0) * d_model;
            for (Index i = 0; i < d_model; ++i)
                y[layer * d_model + i] = x[layer * d_model + (i + 1) % d_model] - 0.5F * before[i];
        }
    }
}

void SyntheticBatch::pin(Backend& backend) {
    for (const std::vector<float>* array : {&inputs_, &targets_})
        pins_.push_back(backend.pin(array->data(), array->size() * sizeof(float)));
}

HostBatch SyntheticBatch::batch() const {
    return {tokens_, slice_, inputs_, targets_, 0};
}

}  // namespace clt
