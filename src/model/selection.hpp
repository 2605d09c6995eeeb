// Which pre-activations are active: the encoder's tiles yield candidates, a radix select over all
// ranks cuts them. [B, L*F] never exists. Source: Bussmann et al. 2024, BatchTopK, section 3.
#pragma once

#include <algorithm>
#include <memory>

#include "clt/backend/backend.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/model/config.hpp"
#include "clt/model/params.hpp"

namespace clt {

/// relu and jumprelu: at or above this share of kept entries the dense products beat the gathers.
/// On AVX-512 cores a gather moves about a tenth of the multiply-adds a second that the dense
/// product reaches.
inline constexpr double dense_share = 0.1;

CollectRule collect_rule(const ModelConfig& model);

/// Entries to keep over all L*F columns: of the whole batch (batchtopk) or of each token (topk).
/// batchtopk: floor(k * tokens); topk: floor(k), or ceil(k * L * F) below 1 (spec 5.4, 5.5).
Index selection_budget(const ModelConfig& model, const Shape& shape, Index tokens);

/// Bits of a radix select's digit: wide for one group, narrow where every token has a histogram.
constexpr int digit_bits(bool per_token) {
    return per_token ? 4 : 11;
}

/// Candidates beyond this many are cut down to the budget: twice of it, but not below 65,536, as a
/// cut costs some passes over them.
constexpr Index candidate_limit(Index budget) {
    return std::max(2 * budget, Index{1} << 16);
}

/// The grid's bulk collectives. One set a step: with NCCL each takes some 0.5 GB of a GPU.
struct GridCollectives {
    GridCollectives(Backend& backend, const ProcessGrid& grid)
        : all(backend.collectives(grid.all())),
          feature(backend.collectives(grid.feature())),
          data(backend.collectives(grid.data())) {}

    std::unique_ptr<Collectives> all;      // every rank
    std::unique_ptr<Collectives> feature;  // ranks with the same tokens, other features
    std::unique_ptr<Collectives> data;     // ranks with the same features, other tokens
};

class Selection {
  public:
    /// References must outlive it.
    Selection(Backend& backend, const ProcessGrid& grid, Params& params, const ModelConfig& model,
              const GridCollectives& collectives);

    /// The active entries of this rank's features for its replica's tokens. x: [B_r, L*d], the
    /// replica's part, tokens [first_token, ..) of `tokens` over all replicas.
    /// negative_sum [1], when not empty, gets sum relu(-p) over this rank's entries. Collective
    /// over grid.all(). The result is valid until the next call.
    const Candidates& run(const EncoderOperand& x, Index first_token, Index tokens,
                          Span<double> negative_sum);

    /// Lowest score kept by the last run (batchtopk; -infinity when nothing was cut). Waits for
    /// the cut.
    double threshold();
    /// Times the last run's carried bound was too high and the encoder ran again: 0 or 1.
    Index retries() const { return retries_; }

  private:
    struct Problem {
        Index budget;  // entries a group keeps
        Index groups;  // 1, or this replica's tokens (topk)
        Index tokens;  // B over all replicas
        PositionMap map;
    };
    /// All tiles once; what is below bound_ is never seen. With cut_when_full the candidates are
    /// cut whenever they pass their limit, which raises bound_, so that all fit; it waits for every
    /// tile.
    void encode(const EncoderOperand& x, const Problem& problem, bool cut_when_full,
                Span<double> negative_sum);
    void run_ranked(const EncoderOperand& x, const Problem& problem, Span<double> negative_sum);
    void run_unranked(const EncoderOperand& x, const Problem& problem, Span<double> negative_sum);
    Index tile_features(const Problem& problem) const;
    /// Cuts the candidates to the budget, over this rank alone when across is null.
    void cut(const Problem& problem, Collectives* across);
    bool per_token() const { return rule_.activation == Activation::topk; }
    bool ranked() const { return is_ranked(rule_.activation); }

    Backend& backend_;
    const ProcessGrid& grid_;
    Params& params_;
    ModelConfig model_;
    CollectRule rule_;
    const GridCollectives& collectives_;

    Candidates candidates_;
    Cut cut_;
    Buffer<Index> counts_;
    Buffer<float> bound_;  // [1] or [B_r]: no entry below it can be kept
    Buffer<float> tile_;   // [T, B_r]
    Buffer<double> sums_;  // [T, 2]
    double threshold_;
    bool threshold_is_new_ = false;  // still in cut_.score
    double margin_;
    Index retries_ = 0;
};

}  // namespace clt
