// The state of Step, shared by its sparse path (step.cpp) and its dense one (dense_step.cpp).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "clt/base/stopwatch.hpp"
#include "clt/model/step.hpp"
#include "model/selection.hpp"

namespace clt {

struct Step::Impl {
    Impl(Backend& backend, const ProcessGrid& grid, Params& params, const ModelConfig& model,
         const LossConfig& loss, const std::vector<float>& error_scale, Index max_tokens);

    // ---- the equations, in the order of a step
    StepResult forward(const HostBatch& batch, bool training);
    void gather_inputs(const HostBatch& batch);
    bool measure_density();
    void encode_select(bool training);
    void decode();
    void reduce_and_compare(const HostBatch& batch, StepResult& result);
    /// This rank's tokens of a [B, L*d] buffer.
    Span<float> slice_of(Buffer<float>& buffer) const;
    /// Every rank gets every rank's slice. Collective.
    void share_slices(Buffer<float>& buffer);
    void merge_replicas();
    void penalty(const StepScalars& scalars, StepResult& result);
    void backward(const StepScalars& scalars, StepResult& result);
    /// One walk over all weight rows of this shard; adam null: only the sum of squared gradients is
    /// formed and returned (else 0). activations: form dL/dpre too, once a step.
    double walk_rows(const StepScalars& scalars, const AdamStep* adam, bool activations,
                     StepResult& result);
    double sparse_rows(const AdamStep* adam, bool activations);
    double encoder_rows_with_preactivation(const AdamStep* adam, Index layer,
                                           bool add_bias_gradient);
    double apply(const AdamStep* adam, Matrix<const float> g, const ParamRows& array);
    double sharded_vector_norm();
    double decoder_bias_norm(const StepScalars& scalars);
    void update_vectors(const StepScalars& scalars, float gradient_scale);
    void count(StepResult& result);
    /// Seconds since the last call go to this stage.
    void stage(const char* name);

    // ---- dense_step.cpp: relu and jumprelu where many entries are active
    void dense_decode();
    double dense_rows(const StepScalars& scalars, const AdamStep* adam, StepResult& result);

    // ---- views
    Index decoder_stride() const { return shape.layers * shape.d_model; }
    /// Columns [column, ..) of a range of tokens in a [.., L*d] buffer, `cols` wide.
    Matrix<float> columns(Buffer<float>& buffer, Shard range, Index column, Index cols) const {
        const Index n = range.size();
        if (n == 0) return {buffer.span().subspan(0, 0), 0, cols, decoder_stride()};
        return {buffer.span().subspan(range.begin * decoder_stride() + column,
                                      (n - 1) * decoder_stride() + cols),
                n, cols, decoder_stride()};
    }
    Matrix<float> token_rows(Buffer<float>& buffer, Shard range) const {
        return columns(buffer, range, 0, decoder_stride());
    }
    Matrix<float> tile_of(Buffer<float>& buffer, Index n, Index cols) const {
        buffer.reserve_discarding(backend.memory(), n * cols, Purpose::workspace);
        return {buffer.span().subspan(0, n * cols), n, cols};
    }
    /// Rows [first, first + n) of a parameter.
    static ParamRows rows_of(const ParamRows& array, Index first, Index n) {
        const auto part = [&](const Matrix<float>& m) {
            return Matrix<float>(m.elements.subspan(first * m.stride, n * m.cols), n, m.cols);
        };
        return {part(array.value), part(array.moment1), part(array.moment2)};
    }
    Shard batch_tokens() const { return {0, tokens}; }
    Index local_features() const { return params.features().size(); }
    Index rows() const { return params.local_rows(); }
    Span<float> threshold_rows(Index row, Index n) {
        const Span<float> all_rows = params.log_threshold().value.elements;
        return all_rows.empty() ? all_rows : all_rows.subspan(row, n);
    }
    double penalty_weight(const StepScalars& scalars) const {
        return scalars.sparsity /
               (loss.sparsity_reduction == "mean" ? static_cast<double>(tokens) : 1.0);
    }
    double preactivation_weight() const {
        return loss.preactivation /
               (static_cast<double>(tokens) * static_cast<double>(shape.layers * shape.features));
    }

    Backend& backend;
    const ProcessGrid& grid;
    Params& params;
    const ModelConfig model;
    const LossConfig loss;
    const Shape shape;
    const CollectRule rule;
    std::unique_ptr<Collectives> all;      // every rank
    std::unique_ptr<Collectives> replica;  // ranks with the same tokens, other features
    std::unique_ptr<Collectives> shard;    // ranks with the same features, other tokens
    Selection selection;

    // ---- the batch at hand
    Index tokens = 0;  // B
    Shard own_tokens;  // this replica's tokens of [0, B)
    Shard slice;       // this rank's tokens of [0, B)
    bool dense = false;
    bool penalised = false;  // the tanh penalty is on at this step
    double negative_sum = 0;
    Buffer<float> inputs;     // [B, L*d]
    Buffer<float> partial;    // [B_r, L*d] this shard's part of the reconstruction
    Buffer<float> error;      // [slice, L*d]
    Buffer<float> targets;    // [slice, L*d]
    Buffer<float> gradient;   // [B, L*d] dL/dyhat
    ActiveSet own_active;     // this replica's tokens
    ActiveSet merged_active;  // all tokens (several replicas only)
    ActiveSet* active = nullptr;

    // ---- per feature and per layer
    Buffer<float> scale;                  // [L*d]
    Buffer<float> bias_gradient;          // [L*d]
    Buffer<float> encoder_bias_gradient;  // [rows]
    Buffer<float> threshold_gradient;     // [rows], jumprelu
    Buffer<float> norms;                  // [rows], penalty only
    Buffer<float> coefficient;            // [rows], penalty only
    Buffer<Index> active_tokens;          // [rows] of this batch
    Buffer<Index> fired_tokens;
    Buffer<Index> silence;  // [rows] steps since it fired

    // ---- workspace of the dense products
    Buffer<float> tile_pre, tile_value, tile_gradient, tile_bias, row_gradient, encoder_gradient;
    Buffer<Index> tile_counts;

    // ---- evaluation
    Index evaluated_tokens = 0;
    ColumnSums sums;
    std::vector<Index> evaluated_active, evaluated_fired;  // [rows], over all replicas

    Stopwatch watch;
    std::vector<std::pair<std::string, double>> stage_seconds;
};

}  // namespace clt
