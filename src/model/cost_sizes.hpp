// The sizes that a step's costs are made of, for the rank with the most features and tokens.
#pragma once

#include <algorithm>
#include <cmath>

#include "clt/model/cost.hpp"
#include "model/selection.hpp"

namespace clt {

inline constexpr Index float_bytes = 4;
inline constexpr Index rounded_bytes = 2;  // bfloat16
inline constexpr Index counter_bytes = 8;

/// The largest of `parts` shares of n.
inline Index part_of(Index n, Index parts) {
    return (n + parts - 1) / parts;
}

struct Sizes {
    explicit Sizes(const CostQuery& q)
        : layers(q.shape.layers),
          d(q.shape.d_model),
          stride(layers * d),
          batch(q.batch_tokens),
          replica(part_of(batch, q.data_parts)),
          slice(part_of(replica, q.feature_parts)),
          features(part_of(q.shape.features, q.feature_parts)),
          rows(layers * features),
          encoder(rows * d),
          decoder(features * d * layers * (layers + 1) / 2),
          jumprelu(q.model.activation == "jumprelu"),
          per_token(q.model.activation == "topk"),
          ranked(per_token || q.model.activation == "batchtopk") {
        const double all_rows = static_cast<double>(layers * q.shape.features);
        const double share = static_cast<double>(rows) / all_rows;
        budget = ranked ? selection_budget(q.model, q.shape, batch) * (per_token ? replica : 1) : 0;
        // batchtopk and topk: the mean over shards; the others: as many as the sparse path takes.
        const double kept = per_token
                                ? static_cast<double>(selection_budget(q.model, q.shape, batch)) *
                                      static_cast<double>(batch)
                            : ranked ? static_cast<double>(budget)
                                     : dense_share * all_rows * static_cast<double>(batch);
        entries = std::ceil(kept * share);
        own_entries =
            std::ceil(entries * static_cast<double>(replica) / static_cast<double>(batch));
    }

    Index layers, d, stride;      // L, d, L d
    Index batch, replica, slice;  // tokens: B, B_r, those whose residual this rank forms
    Index features, rows;         // F_p, L F_p
    Index encoder, decoder;       // weights of this rank
    bool jumprelu, per_token, ranked;
    Index budget = 0;        // entries a selection keeps, over its groups
    double entries = 0;      // active (row, token) of this rank's rows and all B tokens
    double own_entries = 0;  // and of its replica's tokens

    Index vectors() const { return rows * (jumprelu ? 2 : 1) + stride; }
    /// Mean width of an active entry's decoder row, were all layers equally active.
    double row_width() const { return static_cast<double>((layers + 1) * d) / 2; }
};

/// What the kernels of the CUDA backend do in a step; kept beside src/backend/cuda/.
std::vector<KernelCost> cuda_kernels(const CostQuery& query, const Sizes& sizes);

}  // namespace clt
