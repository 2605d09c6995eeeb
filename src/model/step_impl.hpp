// The state of Step, shared by its sparse path (step.cpp) and its dense one (dense_step.cpp).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "clt/base/progress.hpp"
#include "clt/model/step.hpp"
#include "model/selection.hpp"
#include "model/views.hpp"

namespace clt {

struct Step::Impl {
    Impl(Backend& backend, const ProcessGrid& grid, Params& params, const ModelConfig& model,
         const LossConfig& loss, const std::vector<float>& error_scale, Index max_tokens);

    // ---- the equations, in the order of a step
    void forward(const HostBatch& batch, bool training);
    void start_batch(const HostBatch& batch);
    bool measure_density();
    void encode_select(bool training);
    void decode();
    void reduce_and_compare();
    /// This rank's tokens of a [B, L*d] buffer.
    Span<float> slice_of(Buffer<float>& buffer) const;
    /// Every rank gets every rank's slice. Collective.
    void share_slices(Buffer<float>& buffer);
    void merge_replicas();
    void penalty(const StepScalars& scalars);
    void backward(const StepScalars& scalars, StepResult& result);
    /// One walk over all weight rows of this shard; adam null: only the sum of squared gradients is
    /// formed. activations: form dL/dpre too, once a step.
    void walk_rows(const StepScalars& scalars, const AdamStep* adam, bool activations);
    void sparse_rows(const AdamStep* adam, bool activations);
    void decoder_rows(Index layer, const AdamStep* adam, bool activations);
    void encoder_rows(Index layer, const AdamStep* adam, bool activations);
    void encoder_rows_with_preactivation(const AdamStep* adam, Index layer, bool add_bias_gradient);
    void apply(const AdamStep* adam, Matrix<const float> g, const ParamRows& array);
    double gradient_norm(const StepScalars& scalars);
    void update_vectors(const StepScalars& scalars, float gradient_scale);
    void count();
    /// Waits for the sums of the forward half and puts them over all ranks. Collective.
    void read_sums(StepResult& result);
    // What is not finite, looked for once something is: as words, the same on every rank.
    // Collective.
    std::string broken_loss(const StepResult& result);
    std::string broken_gradient(const StepScalars& scalars);
    void stage(const char* name) {
        clock->mark(name);
        note_stage(name);
    }

    // ---- dense_step.cpp: relu and jumprelu where many entries are active
    void dense_decode();
    void dense_rows(const StepScalars& scalars, const AdamStep* adam);
    void dense_rows_of(Index layer, const StepScalars& scalars, const AdamStep* adam);

    // ---- views
    Index decoder_stride() const { return shape.layers * shape.d_model; }
    /// Columns [column, ..) of a range of tokens in a [.., L*d] buffer, `cols` wide.
    Matrix<float> columns(Buffer<float>& buffer, Shard range, Index column, Index cols) const {
        return columns_of(token_rows(buffer, range), column, cols);
    }
    template <class T>
    Matrix<T> token_rows(Buffer<T>& buffer, Shard range) const {
        return rows_of(Matrix<T>(buffer.span(), buffer.size() / decoder_stride(), decoder_stride()),
                       range.begin, range.size());
    }
    /// Inputs of a range of tokens as the encoder of `layer` reads them.
    EncoderOperand encoder_inputs(Shard range, Index layer) {
        return columns_of(EncoderOperand(token_rows(inputs, range), token_rows(rounded, range)),
                          layer * shape.d_model, shape.d_model);
    }
    Matrix<float> tile_of(Buffer<float>& buffer, Index n, Index cols) const {
        buffer.reserve_discarding(backend.memory(), n * cols, Purpose::workspace);
        return {buffer.span().subspan(0, n * cols), n, cols};
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

    // ---- sums of a step: L squared errors, then these, then the decoder bias's L squared norms
    enum Total {
        inputs_squared,
        negative,
        parameters_broken,  // of the updates before
        tanh_penalty,
        gradient_squared,
        totals_between
    };
    Span<double> squared_errors() { return totals.span().subspan(0, shape.layers); }
    Span<double> total(Total which) { return totals.span().subspan(shape.layers + which, 1); }
    Span<double> bias_squares(Index target) {
        return totals.span().subspan(shape.layers + totals_between + target, 1);
    }
    std::vector<double> download_totals() {
        std::vector<double> host(static_cast<std::size_t>(totals.size()));
        backend.download(Span<const double>(totals.span()), std::span<double>(host));
        return host;
    }

    Backend& backend;
    const ProcessGrid& grid;
    Params& params;
    const ModelConfig model;
    const LossConfig loss;
    const Shape shape;
    const CollectRule rule;
    const GridCollectives collectives;
    Selection selection;

    // ---- the batch at hand
    Index tokens = 0;  // B
    Shard own_tokens;  // this replica's tokens of [0, B)
    Shard slice;       // this rank's tokens of [0, B)
    bool dense = false;
    bool penalised = false;  // the tanh penalty is on at this step
    Buffer<double> totals;
    Buffer<Index> layer_tokens;               // [L] active entries
    Buffer<Index> kept_sample;                // [1] see measure_density()
    Buffer<float> inputs;                     // [B, L*d]
    Buffer<Bfloat16> rounded;                 // [B, L*d], where the backend's encoder wants it
    Buffer<float> partial;                    // [B_r, L*d] this shard's part of the reconstruction
    Buffer<float> error;                      // [slice, L*d]
    Buffer<float> targets;                    // [slice, L*d]
    Buffer<float> next_inputs, next_targets;  // what the next batch is copied to, see start_batch()
    Buffer<float> gradient;                   // [B, L*d] dL/dyhat
    ActiveSet own_active;                     // this replica's tokens
    ActiveSet merged_active;                  // all tokens (several replicas only)
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
    Buffer<float> tile_pre, tile_value, tile_gradient, row_gradient, encoder_gradient;

    // ---- evaluation
    Index evaluated_tokens = 0;
    ColumnSums sums;
    std::vector<Index> evaluated_active, evaluated_fired;  // [rows], over all replicas

    std::unique_ptr<StageClock> clock;
};

}  // namespace clt
