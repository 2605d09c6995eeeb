#include "model/selection.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "model/views.hpp"

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
    // relu and jumprelu rank nothing; column statistics would be collectives in a pass that a
    // replica may repeat alone.
    rule.zscore = is_ranked(rule.activation) && model.ranking == "zscore";
    rule.keep_negative = model.keep_negative;
    rule.half_window = static_cast<float>(model.bandwidth / 2);
    return rule;
}

void check_k(const ModelConfig& model, const Shape& shape, Index batch_tokens) {
    if (!is_ranked(activation_of(model.activation))) return;
    const Index columns = shape.layers * shape.features;
    if (model.k > static_cast<double>(columns))
        user_error(
            "[model] k = {}: expected at most {}, the {} layers times {} features of the model",
            model.k, columns, shape.layers, shape.features);
    if (selection_budget(model, shape, batch_tokens) == 0)
        user_error(
            "[model] k = {}: of a batch of {} tokens it keeps no entry at all; expected k times "
            "data.batch_tokens of at least 1",
            model.k, batch_tokens);
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
                     const ModelConfig& model, const GridCollectives& collectives)
    : backend_(backend),
      grid_(grid),
      params_(params),
      model_(model),
      rule_(collect_rule(model)),
      collectives_(collectives),
      threshold_(lowest),
      margin_(first_margin) {}

const Candidates& Selection::run(const EncoderOperand& x, Index first_token, Index tokens,
                                 Span<double> negative_sum) {
    const Shape& shape = params_.shape();
    const Problem problem{ranked() ? selection_budget(model_, shape, tokens) : 0,
                          per_token() ? x.value.rows : 1,
                          tokens,
                          {params_.features().size(), shape.features, params_.features().begin,
                           shape.layers, per_token() ? 0 : first_token}};
    if (ranked())
        run_ranked(x, problem, negative_sum);
    else
        run_unranked(x, problem, negative_sum);
    return candidates_;
}

// How many entries pass is not known before: the first batches may need a second encoder pass.
void Selection::run_unranked(const EncoderOperand& x, const Problem& problem,
                             Span<double> negative_sum) {
    Index room = std::max(candidates_.capacity(), tile_features(problem) * x.value.rows);
    for (;;) {
        backend_.reset(candidates_, room, /*ranked=*/false);
        encode(x, problem, /*cut_when_full=*/false, negative_sum);
        const Index found = backend_.found(candidates_);
        if (found <= candidates_.capacity()) return;
        room = found + found / 8;
    }
}

void Selection::run_ranked(const EncoderOperand& x, const Problem& problem,
                           Span<double> negative_sum) {
    const auto& [budget, groups, tokens, map] = problem;
    retries_ = 0;
    std::vector<float> bound(static_cast<std::size_t>(groups), lowest);
    bool carried = !per_token() && threshold() > lowest;
    if (carried) bound[0] = static_cast<float>(threshold_ - margin_ * std::abs(threshold_));
    margin_ = std::max(smallest_margin, margin_ * margin_decay);
    bound_.reserve_discarding(backend_.memory(), groups, Purpose::workspace);
    backend_.upload(std::span<const float>(bound), bound_.span().subspan(0, groups));

    // A bound carried over lets few more through than are kept, so nothing waits for the counts
    // until all tiles are done; without one they are watched.
    bool cut_when_full = !carried;
    const Index room = candidate_limit(budget * groups) + tile_features(problem) * x.value.rows;
    Index found = 0;
    for (;;) {
        backend_.reset(candidates_, room, /*ranked=*/true);
        encode(x, problem, cut_when_full, negative_sum);
        const Index own = backend_.found(candidates_);
        std::array<Index, 2> sums{own, own > candidates_.capacity() ? 1 : 0};
        grid_.all().all_reduce_sum(std::span<Index>(sums));
        found = sums[0];
        if (sums[1] > 0 && budget > 0) {
            CLT_CHECK(!cut_when_full, "{} candidates do not fit", own);
            cut_when_full = true;
        } else if (carried && found < budget) {
            ++retries_;
            margin_ = std::min(1.0, 4 * margin_);
            carried = false;
            cut_when_full = true;
            backend_.upload(std::span<const float>(&lowest, 1), bound_.span().subspan(0, 1));
        } else {
            break;
        }
    }
    threshold_ = lowest;
    if (budget == 0) {
        backend_.zero(candidates_.size.span());
    } else if (per_token()) {
        cut(problem, collectives_.feature.get());
    } else if (found >= budget) {  // fewer than asked for: all are kept
        cut(problem, collectives_.all.get());
        threshold_is_new_ = true;
    }
}

double Selection::threshold() {
    if (threshold_is_new_)
        threshold_ = static_cast<double>(value_of_key(static_cast<std::uint32_t>(
            backend_.download_one(Span<const std::uint64_t>(cut_.score.span().subspan(0, 1))))));
    threshold_is_new_ = false;
    return threshold_;
}

// Replicas share a shard and meet in the sums of every tile, so the tile must not depend on a
// replica's own number of tokens, which differs by one.
Index Selection::tile_features(const Problem& problem) const {
    const Index replicas = grid_.data_parts();
    return backend_.encode_tile((problem.tokens + replicas - 1) / replicas,
                                params_.shape().d_model);
}

void Selection::encode(const EncoderOperand& x, const Problem& problem, bool cut_when_full,
                       Span<double> negative_sum) {
    const Shape& shape = params_.shape();
    const Index d = shape.d_model;
    const Index local = params_.features().size();
    const Index n_tokens = x.value.rows;
    const Index tile = tile_features(problem);
    const Index limit = candidate_limit(problem.budget * problem.groups);
    const Span<float> bound = ranked() ? bound_.span().subspan(0, problem.groups) : Span<float>();
    tile_.reserve_discarding(backend_.memory(), tile * n_tokens, Purpose::workspace);
    if (rule_.zscore) sums_.reserve_discarding(backend_.memory(), 2 * tile, Purpose::workspace);
    if (!negative_sum.empty()) backend_.zero(negative_sum);

    for (Index layer = 0; layer < shape.layers; ++layer) {
        const EncoderOperand x_layer = columns_of(x, layer * d, d);
        const ParamRows weight = params_.encoder(layer);
        const Span<float> bias = params_.encoder_bias().value.elements;
        const Span<float> threshold = params_.log_threshold().value.elements;
        for (Index f = 0; f < local; f += tile) {
            const Index n = std::min(tile, local - f);
            const Index row = layer * local + f;
            const Matrix<float> pre(tile_.span().subspan(0, n * n_tokens), n, n_tokens);
            backend_.encode(x_layer, rows_of(weight, f, n), bias.subspan(row, n), pre);
            Span<double> sums;
            if (rule_.zscore) {
                sums = sums_.span().subspan(0, 2 * n);
                backend_.tile_sums(pre, sums);
                collectives_.data->all_reduce_sum(sums);
            }
            if (!negative_sum.empty()) backend_.negative_sum(pre, negative_sum);
            backend_.collect(rule_, pre, row, sums, problem.tokens, bound,
                             threshold.empty() ? threshold : threshold.subspan(row, n),
                             candidates_);
            if (cut_when_full && problem.budget > 0 && backend_.found(candidates_) > limit) {
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

    const int width = digit_bits(per_token());
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
