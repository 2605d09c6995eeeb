#include "model/selection.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace clt {
namespace {

constexpr float lowest = -std::numeric_limits<float>::infinity();

// The carried bound lies this fraction of the last threshold below it: at first, at least and at
// most. A smaller margin means fewer candidates, a bound that proves too high costs a second
// encoder pass; thresholds of consecutive batches differ by a few percent.
constexpr double first_margin = 0.1;
constexpr double smallest_margin = 0.05;
constexpr double margin_decay = 0.98;

Activation activation_of(const std::string& name) {
    if (name == "batchtopk") return Activation::batchtopk;
    if (name == "topk") return Activation::topk;
    if (name == "jumprelu") return Activation::jumprelu;
    CLT_CHECK(name == "relu", "activation {}", name);
    return Activation::relu;
}

}  // namespace

CollectRule collect_rule(const ModelConfig& model) {
    CollectRule rule;
    rule.activation = activation_of(model.activation);
    rule.zscore = model.ranking == "zscore";
    rule.keep_negative = model.keep_negative;
    rule.half_window = static_cast<float>(model.bandwidth / 2);
    return rule;
}

Index selection_budget(const ModelConfig& model, const Shape& shape, Index tokens) {
    const Index columns = shape.layers * shape.features;
    if (model.activation == "batchtopk")
        return std::min(static_cast<Index>(std::floor(model.k * static_cast<double>(tokens))),
                        tokens * columns);
    // The fraction is taken in float32, as the reference does: ceil(0.1f * 10) must agree with it.
    const Index wanted = model.k < 1 ? static_cast<Index>(std::ceil(static_cast<float>(model.k) *
                                                                    static_cast<float>(columns)))
                                     : static_cast<Index>(model.k);
    return std::min(wanted, columns);
}

Selection::Selection(Backend& backend, const ProcessGrid& grid, Params& params,
                     const ModelConfig& model)
    : backend_(backend),
      grid_(grid),
      params_(params),
      model_(model),
      rule_(collect_rule(model)),
      all_(backend.collectives(grid.all())),
      data_(backend.collectives(grid.data())),
      feature_(backend.collectives(grid.feature())),
      threshold_(lowest),
      margin_(first_margin) {}

Selection::~Selection() = default;

const Candidates& Selection::run(Matrix<const float> x, Index first_token, Index tokens,
                                 double* negative_sum) {
    const Shape& shape = params_.shape();
    const Index budget = ranked() ? selection_budget(model_, shape, tokens) : 0;
    const Index groups = per_token() ? x.rows : 1;
    std::vector<float> bound(static_cast<std::size_t>(groups), lowest);
    const bool carried = !per_token() && ranked() && threshold_ > lowest;
    if (carried) bound[0] = static_cast<float>(threshold_ - margin_ * std::abs(threshold_));
    bound_.reserve_discarding(backend_.memory(), groups, Purpose::workspace);
    backend_.upload(std::span<const float>(bound), bound_.span().subspan(0, groups));

    const PositionMap map{params_.features().size(), shape.features, params_.features().begin,
                          shape.layers, per_token() ? 0 : first_token};
    const Problem problem{budget, groups, tokens, map};
    encode(x, problem, negative_sum);
    if (!ranked()) return candidates_;
    if (budget == 0) {
        candidates_.size = 0;
        return candidates_;
    }

    if (!per_token()) {
        Index found = grid_.all().all_reduce_sum(candidates_.size);
        margin_ = std::max(smallest_margin, margin_ * margin_decay);
        if (found < budget && carried) {
            ++retries_;
            margin_ = std::min(1.0, 4 * margin_);
            backend_.upload(std::span<const float>(&lowest, 1), bound_.span().subspan(0, 1));
            encode(x, problem, negative_sum);
            found = grid_.all().all_reduce_sum(candidates_.size);
        }
        threshold_ = lowest;
        if (found <= budget) return candidates_;  // fewer than asked for: all are kept
    }
    cut(problem, per_token() ? feature_.get() : all_.get());
    if (!per_token()) {
        std::uint64_t key = 0;
        backend_.download(Span<const std::uint64_t>(cut_.score.span().subspan(0, 1)),
                          std::span<std::uint64_t>(&key, 1));
        threshold_ = static_cast<double>(value_of_key(static_cast<std::uint32_t>(key)));
    }
    return candidates_;
}

void Selection::encode(Matrix<const float> x, const Problem& problem, double* negative_sum) {
    const Shape& shape = params_.shape();
    const Index d = shape.d_model;
    const Index local = params_.features().size();
    // Replicas share a shard and meet in the sums of every tile, so the tile must not depend on a
    // replica's own number of tokens, which differs by one.
    const Index replicas = grid_.data_parts();
    const Index tile = backend_.encode_tile((problem.tokens + replicas - 1) / replicas, d);
    const Index limit = candidate_limit(problem.budget * problem.groups);
    const Span<float> bound = bound_.span().subspan(0, problem.groups);
    tile_.reserve_discarding(backend_.memory(), tile * x.rows, Purpose::workspace);
    if (rule_.zscore) sums_.reserve_discarding(backend_.memory(), 2 * tile, Purpose::workspace);
    candidates_.size = 0;
    if (negative_sum != nullptr) *negative_sum = 0;

    for (Index layer = 0; layer < shape.layers; ++layer) {
        const Matrix<const float> x_layer(
            x.rows == 0 ? x.elements : x.elements.subspan(layer * d, x.elements.size() - layer * d),
            x.rows, d, x.stride);
        const ParamRows weight = params_.encoder(layer);
        const Span<float> bias = params_.encoder_bias().value.elements;
        const Span<float> threshold = params_.log_threshold().value.elements;
        for (Index f = 0; f < local; f += tile) {
            const Index n = std::min(tile, local - f);
            const Index row = layer * local + f;
            const Matrix<float> pre(tile_.span().subspan(0, n * x.rows), n, x.rows);
            backend_.encode(x_layer,
                            Matrix<const float>(weight.value.elements.subspan(f * d, n * d), n, d),
                            bias.subspan(row, n), pre);
            Span<double> sums;
            if (rule_.zscore) {
                sums = sums_.span().subspan(0, 2 * n);
                backend_.tile_sums(pre, sums);
                data_->all_reduce_sum(sums);
            }
            if (negative_sum != nullptr) *negative_sum += backend_.negative_sum(pre);
            backend_.collect(rule_, pre, row, sums, problem.tokens, bound,
                             threshold.empty() ? threshold : threshold.subspan(row, n),
                             candidates_);
            if (ranked() && problem.budget > 0 && candidates_.size > limit) {
                // The budget's worth of entries found so far already bounds the final cut from
                // below.
                cut(problem, nullptr);
                backend_.raise_bound(cut_, bound);
            }
        }
    }
}

void Selection::cut(const Problem& problem, Collectives* across) {
    const auto& [budget, groups, tokens, map] = problem;
    MemoryResource& memory = backend_.memory();
    cut_.groups = groups;
    cut_.score.reserve_discarding(memory, groups, Purpose::workspace);
    cut_.position.reserve_discarding(memory, groups, Purpose::workspace);
    cut_.remaining.reserve_discarding(memory, groups, Purpose::workspace);
    backend_.zero(cut_.score.span());
    backend_.zero(cut_.position.span());
    const std::vector<Index> remaining(static_cast<std::size_t>(groups), budget);
    backend_.upload(std::span<const Index>(remaining), cut_.remaining.span().subspan(0, groups));

    // Wide digits for one group; narrow ones where every token has a histogram of its own.
    const int width = per_token() ? 4 : 11;
    counts_.reserve_discarding(memory, groups << width, Purpose::workspace);
    const auto select = [&, n_groups = groups](int key_bits, bool by_position) {
        for (int top = key_bits; top > 0;) {
            const int bits = std::min(width, top);
            top -= bits;
            const Span<Index> counts = counts_.span().subspan(0, n_groups << bits);
            backend_.zero(counts);
            if (by_position)
                backend_.count_position_digits(candidates_, problem.map, cut_, top, bits, counts);
            else
                backend_.count_digits(candidates_, cut_, top, bits, counts);
            if (across != nullptr) across->all_reduce_sum(counts);
            backend_.choose_digit(counts, top, bits, by_position, cut_);
        }
    };
    select(32, false);
    const Index columns = map.layers * map.global_features;
    const auto positions = static_cast<std::uint64_t>(per_token() ? columns : tokens * columns);
    select(static_cast<int>(std::bit_width(positions)), true);
    backend_.keep(map, cut_, candidates_);
}

}  // namespace clt
