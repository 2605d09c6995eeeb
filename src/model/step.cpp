#include "clt/model/step.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "model/step_impl.hpp"

namespace clt {
namespace {

// Features a layer and shard whose pre-activations measure the share.
constexpr Index density_sample = 32;

}  // namespace

Step::Impl::Impl(Backend& backend_, const ProcessGrid& grid_, Params& params_,
                 const ModelConfig& model_, const LossConfig& loss_,
                 const std::vector<float>& error_scale, Index max_tokens)
    : backend(backend_),
      grid(grid_),
      params(params_),
      model(model_),
      loss(loss_),
      shape(params_.shape()),
      rule(collect_rule(model_)),
      collectives(backend_, grid_),
      selection(backend_, grid_, params_, model_, collectives),
      clock(backend_.stage_clock()) {
    MemoryResource& memory = backend.memory();
    const Index stride = decoder_stride();
    CLT_CHECK(static_cast<Index>(error_scale.size()) == stride, "error scale of {} values",
              error_scale.size());
    const Index replica_tokens = grid.replica_tokens(max_tokens).size() + 1;  // sizes differ by one
    const Index slice_tokens = grid.token_slice(max_tokens).size() + 2;
    totals = Buffer<double>(memory, 2 * shape.layers + totals_between, Purpose::workspace);
    layer_tokens = Buffer<Index>(memory, shape.layers, Purpose::workspace);
    kept_sample = Buffer<Index>(memory, 1, Purpose::workspace);
    inputs = Buffer<float>(memory, max_tokens * stride, Purpose::batch);
    if (backend.rounds_encoder())
        rounded = Buffer<Bfloat16>(memory, max_tokens * stride, Purpose::batch);
    gradient = Buffer<float>(memory, max_tokens * stride, Purpose::batch);
    partial = Buffer<float>(memory, replica_tokens * stride, Purpose::batch);
    error = Buffer<float>(memory, slice_tokens * stride, Purpose::batch);
    targets = Buffer<float>(memory, slice_tokens * stride, Purpose::batch);
    if (backend.uploads_ahead()) {
        next_inputs = Buffer<float>(memory, max_tokens * stride, Purpose::batch);
        next_targets = Buffer<float>(memory, slice_tokens * stride, Purpose::batch);
    }
    scale = Buffer<float>(memory, stride, Purpose::workspace);
    backend.upload(std::span<const float>(error_scale), scale.span());
    bias_gradient = Buffer<float>(memory, stride, Purpose::gradients);
    encoder_bias_gradient = Buffer<float>(memory, rows(), Purpose::gradients);
    if (rule.activation == Activation::jumprelu)
        threshold_gradient = Buffer<float>(memory, rows(), Purpose::gradients);
    if (loss.sparsity > 0) {
        norms = Buffer<float>(memory, rows(), Purpose::workspace);
        coefficient = Buffer<float>(memory, rows(), Purpose::workspace);
    }
    for (Buffer<Index>* counter : {&active_tokens, &fired_tokens, &silence})
        *counter = Buffer<Index>(memory, rows(), Purpose::workspace);
    backend.zero(silence.span());
    for (Buffer<double>* sum :
         {&sums.target, &sums.target_squared, &sums.error, &sums.error_squared})
        *sum = Buffer<double>(memory, stride, Purpose::workspace);
}

void Step::Impl::forward(const HostBatch& batch, bool training) {
    CLT_CHECK(batch.tokens > 0 && batch.tokens * decoder_stride() <= inputs.size(),
              "a batch of {} tokens", batch.tokens);
    CLT_CHECK(batch.slice == grid.token_slice(batch.tokens));
    clock->start();
    tokens = batch.tokens;
    slice = batch.slice;
    own_tokens = grid.replica_tokens(tokens);
    start_batch(batch);
    stage("gather_inputs");
    backend.zero(active_tokens.span());
    backend.zero(fired_tokens.span());
    backend.zero(totals.span());
    dense = measure_density();
    if (dense) {
        dense_decode();
        stage("dense_decode");
    } else {
        encode_select(training);
        stage("encode_select");
        decode();
        stage("decode");
    }
    reduce_and_compare();
    count();
    stage("count");
}

// Every rank gets the whole inputs: its replica encodes a part of them, the encoder rows see all.
// Where uploads run beside the work given so far, that is the last step's row updates, the batch
// goes to the buffers which that step does not use; the step before it is done, as the host has
// since waited for a sum.
void Step::Impl::start_batch(const HostBatch& batch) {
    if (backend.uploads_ahead()) {
        std::swap(inputs, next_inputs);
        std::swap(targets, next_targets);
    }
    backend.upload_ahead(batch.inputs, slice_of(inputs));
    backend.upload_ahead(batch.targets, targets.span().subspan(0, slice.size() * decoder_stride()));
    share_slices(inputs);
    if (backend.rounds_encoder())
        backend.round(token_rows(inputs, batch_tokens()), token_rows(rounded, batch_tokens()));
}

Span<float> Step::Impl::slice_of(Buffer<float>& buffer) const {
    return buffer.span().subspan(slice.begin * decoder_stride(), slice.size() * decoder_stride());
}

void Step::Impl::share_slices(Buffer<float>& buffer) {
    std::vector<Index> counts;
    for (int r = 0; r < grid.all().size(); ++r)
        counts.push_back(grid.token_slice(tokens, r).size() * decoder_stride());
    collectives.all->all_gather(Span<const float>(slice_of(buffer)), buffer.span(), counts);
}

// A sample of this batch decides, not the last one: a resumed run then takes the same path.
bool Step::Impl::measure_density() {
    if (rule.activation != Activation::relu && rule.activation != Activation::jumprelu)
        return false;
    const Index n = std::min(density_sample, local_features());
    backend.zero(kept_sample.span());
    for (Index layer = 0; layer < shape.layers && n > 0; ++layer) {
        const Matrix<float> pre = tile_of(tile_pre, n, own_tokens.size());
        const Index row = layer * local_features();
        backend.encode(encoder_inputs(own_tokens, layer), rows_of(params.encoder(layer), 0, n),
                       params.encoder_bias().value.elements.subspan(row, n), pre);
        backend.count_kept(rule, threshold_rows(row, n), pre, kept_sample.span());
    }
    std::array<Index, 2> counts{backend.download_one(Span<const Index>(kept_sample.span())),
                                n * shape.layers * own_tokens.size()};
    grid.all().all_reduce_sum(std::span<Index>(counts));
    return static_cast<double>(counts[0]) >= dense_share * static_cast<double>(counts[1]);
}

void Step::Impl::encode_select(bool training) {
    const EncoderOperand x(token_rows(inputs, own_tokens), token_rows(rounded, own_tokens));
    const Candidates& candidates =
        selection.run(x, own_tokens.begin, tokens,
                      training && loss.preactivation > 0 ? total(negative) : Span<double>());
    backend.index(rule, params.log_threshold().value.elements, rows(), own_tokens.size(),
                  candidates, own_active);
    backend.count(own_active, active_tokens.span(), fired_tokens.span());
}

void Step::Impl::decode() {
    std::vector<Matrix<const float>> decoders;
    for (Index layer = 0; layer < shape.layers; ++layer)
        decoders.push_back(params.decoder(layer).value);
    backend.decode(own_active, decoders, token_rows(partial, {0, own_tokens.size()}));
}

// Partial reconstructions become this rank's slice; it alone adds the bias and forms the residual.
void Step::Impl::reduce_and_compare() {
    const Index stride = decoder_stride();
    std::vector<Index> counts;
    const int first = grid.data_index() * grid.feature_parts();
    for (int r = first; r < first + grid.feature_parts(); ++r)
        counts.push_back(grid.token_slice(tokens, r).size() * stride);
    const Span<float> own_error = error.span().subspan(0, slice.size() * stride);
    collectives.feature->reduce_scatter_sum(
        Span<const float>(partial.span().subspan(0, own_tokens.size() * stride)), own_error,
        counts);
    stage("reduce");
    backend.residual(token_rows(error, {0, slice.size()}), token_rows(targets, {0, slice.size()}),
                     params.decoder_bias().value.elements, scale.span(), tokens, shape.layers,
                     token_rows(gradient, slice), squared_errors());
    backend.squared_norm(token_rows(inputs, slice), total(inputs_squared));
    backend.copy(Span<const double>(params.not_finite()), total(parameters_broken));
    stage("residual");
}

void Step::Impl::count() {
    collectives.data->all_reduce_sum(active_tokens.span());
    collectives.data->all_reduce_sum(fired_tokens.span());
    backend.sum_parts(active_tokens.span(), layer_tokens.span());
}

void Step::Impl::read_sums(StepResult& result) {
    std::vector<double> own = download_totals();
    std::vector<Index> by_layer(static_cast<std::size_t>(shape.layers));
    backend.download(Span<const Index>(layer_tokens.span()), std::span<Index>(by_layer));
    const auto layers = static_cast<std::size_t>(shape.layers);
    if (penalised && !dense)  // replicas have merged their entries, so each has formed all of it
        result.sparsity = grid.feature().all_reduce_sum(own[layers + tanh_penalty]);
    own.resize(layers + tanh_penalty);
    grid.all().all_reduce_sum(std::span<double>(own));
    grid.feature().all_reduce_sum(std::span<Index>(by_layer));
    for (const Index layer_sum : by_layer)
        result.l0.push_back(static_cast<double>(layer_sum) / static_cast<double>(tokens));
    result.squared_error.assign(own.begin(), own.begin() + shape.layers);
    for (const double squared : result.squared_error)
        result.reconstruction +=
            squared / (static_cast<double>(tokens) * static_cast<double>(shape.d_model));
    // A NaN input makes pre-activations that are never selected, so no error shows it, but it would
    // reach every encoder row.
    if (!std::isfinite(own[layers + inputs_squared]))
        result.reconstruction = std::numeric_limits<double>::quiet_NaN();
    if (loss.preactivation > 0)
        result.preactivation = preactivation_weight() * own[layers + negative];
    // Sums over all ranks alone decide, so every rank takes the same way.
    result.parameters_broken = own[layers + parameters_broken] != 0;
    if (result.parameters_broken)
        result.not_finite = params.find_not_finite(grid.all());
    else if (!std::isfinite(result.reconstruction + result.sparsity + result.preactivation))
        result.not_finite = broken_loss(result);
    result.finite = !result.parameters_broken && result.not_finite.empty();
    result.dense = dense;
    result.threshold = selection.threshold();
    result.selection_retries = selection.retries();
}

// Replicas share their active entries (and have shared inputs and residuals) and then all make the
// same row updates: with sparse activations that moves far fewer bytes than gradients of rows.
void Step::Impl::merge_replicas() {
    active = &own_active;
    if (dense || grid.data_parts() == 1) return;
    MemoryResource& memory = backend.memory();
    const int parts = grid.data_parts();
    const std::vector<Index> entries = grid.data().all_gather(own_active.entries);
    Index total = 0;
    for (const Index count : entries) total += count;
    std::vector<Index> token_starts;
    for (int p = 0; p < parts; ++p) token_starts.push_back(shard_of(tokens, p, parts).begin);

    const std::vector<Index> row_counts(static_cast<std::size_t>(parts), rows() + 1);
    Buffer<Index> row_starts(memory, parts * (rows() + 1), Purpose::active_set);
    Buffer<std::int32_t> token(memory, total, Purpose::active_set);
    Buffer<float> pre(memory, total, Purpose::active_set);
    Buffer<float> value(memory, total, Purpose::active_set);
    const Index n = own_active.entries;
    collectives.data->all_gather(
        Span<const Index>(own_active.row_start.span().subspan(0, rows() + 1)), row_starts.span(),
        row_counts);
    collectives.data->all_gather(Span<const std::int32_t>(own_active.token.span().subspan(0, n)),
                                 token.span(), entries);
    collectives.data->all_gather(Span<const float>(own_active.pre.span().subspan(0, n)), pre.span(),
                                 entries);
    collectives.data->all_gather(Span<const float>(own_active.value.span().subspan(0, n)),
                                 value.span(), entries);
    backend.merge(row_starts.span(), token_starts, entries, token.span(), pre.span(), value.span(),
                  rows(), tokens, merged_active);
    active = &merged_active;
}

void Step::Impl::penalty(const StepScalars& scalars) {
    penalised = scalars.sparsity > 0;
    if (!penalised) return;
    for (Index layer = 0; layer < shape.layers; ++layer)
        backend.row_norms(params.decoder(layer).value,
                          norms.span().subspan(layer * local_features(), local_features()));
    if (dense) return;  // dense_rows() forms it tile by tile
    backend.sparsity_penalty(static_cast<float>(penalty_weight(scalars)),
                             static_cast<float>(loss.sparsity_scale), norms.span(), *active,
                             coefficient.span(), total(tanh_penalty));
}

std::string Step::Impl::broken_loss(const StepResult& result) {
    Buffer<double> squares(backend.memory(), 2 * shape.layers, Purpose::workspace);
    backend.zero(squares.span());
    for (Index layer = 0; layer < shape.layers; ++layer) {
        const Index first = layer * shape.d_model;
        backend.squared_norm(columns(inputs, slice, first, shape.d_model),
                             squares.span().subspan(layer, 1));
        backend.squared_norm(columns(targets, {0, slice.size()}, first, shape.d_model),
                             squares.span().subspan(shape.layers + layer, 1));
    }
    std::vector<double> by_layer(static_cast<std::size_t>(squares.size()));
    backend.download(Span<const double>(squares.span()), std::span(by_layer));
    grid.all().all_reduce_sum(std::span(by_layer));
    by_layer.insert(by_layer.end(), result.squared_error.begin(), result.squared_error.end());
    const auto broken = std::find_if_not(by_layer.begin(), by_layer.end(),
                                         [](double sum) { return std::isfinite(sum); });
    if (broken != by_layer.end()) {
        constexpr std::array<const char*, 3> kinds{"inputs", "targets", "reconstruction"};
        const auto [kind, layer] = std::div(broken - by_layer.begin(), shape.layers);
        return fmt::format("the {} of layer {}", kinds[static_cast<std::size_t>(kind)], layer);
    }
    if (!std::isfinite(result.sparsity)) return "the sparsity penalty";
    return std::isfinite(result.preactivation) ? "the loss" : "the pre-activation loss";
}

std::string Step::Impl::broken_gradient(const StepScalars& scalars) {
    for (Index layer = 0; layer < shape.layers; ++layer) {
        backend.zero(total(gradient_squared));
        if (dense) {
            dense_rows_of(layer, scalars, nullptr);
        } else {
            decoder_rows(layer, nullptr, false);
            encoder_rows(layer, nullptr, false);
        }
        const double squared = backend.download_one(Span<const double>(total(gradient_squared)));
        if (!std::isfinite(grid.feature().all_reduce_sum(squared)))
            return fmt::format("the gradient of the weights of layer {}", layer);
    }
    return "the gradient of the biases";
}

void Step::Impl::backward(const StepScalars& scalars, StepResult& result) {
    backend.column_sums(token_rows(gradient, batch_tokens()), bias_gradient.span());
    AdamStep adam = scalars.adam;
    if (scalars.gradient_clip > 0) {
        // A first walk for the norm alone: no gradient is stored, so the second makes it again.
        walk_rows(scalars, nullptr, true);
        result.gradient_norm = gradient_norm(scalars);
        if (!std::isfinite(result.gradient_norm)) {  // min(1, c / NaN) is 1
            result.not_finite = broken_gradient(scalars);
            result.finite = false;
            return;
        }
        // The 1e-6 is the reference's (spec 7.5: global L2 norm).
        adam.gradient_scale = static_cast<float>(
            std::min(1.0, scalars.gradient_clip / (result.gradient_norm + 1e-6)));
        walk_rows(scalars, &adam, false);
    } else {
        walk_rows(scalars, &adam, true);
    }
    if (penalised && dense)
        result.sparsity = grid.feature().all_reduce_sum(
            backend.download_one(Span<const double>(total(tanh_penalty))));
    update_vectors(scalars, adam.gradient_scale);
    stage("vectors");
}

void Step::Impl::walk_rows(const StepScalars& scalars, const AdamStep* adam, bool activations) {
    if (dense)
        dense_rows(scalars, adam);
    else
        sparse_rows(adam, activations);
}

void Step::Impl::sparse_rows(const AdamStep* adam, bool activations) {
    for (Index layer = 0; layer < shape.layers; ++layer) decoder_rows(layer, adam, activations);
    stage("decoder_rows");
    if (activations)
        backend.activation_gradient(rule, params.log_threshold().value.elements,
                                    static_cast<float>(model.bandwidth), *active,
                                    encoder_bias_gradient.span(), threshold_gradient.span());
    for (Index layer = 0; layer < shape.layers; ++layer) encoder_rows(layer, adam, activations);
    stage("encoder_rows");
}

void Step::Impl::decoder_rows(Index layer, const AdamStep* adam, bool activations) {
    const Index local = local_features();
    const Span<float> factor =
        penalised ? coefficient.span().subspan(layer * local, local) : Span<float>();
    backend.decoder_rows(*active, layer, local, token_rows(gradient, batch_tokens()), factor,
                         activations, adam, params.decoder(layer), total(gradient_squared));
}

void Step::Impl::encoder_rows(Index layer, const AdamStep* adam, bool activations) {
    if (loss.preactivation > 0)
        encoder_rows_with_preactivation(adam, layer, activations);
    else
        backend.encoder_rows(*active, layer, local_features(),
                             encoder_inputs(batch_tokens(), layer).value, adam,
                             params.encoder(layer), total(gradient_squared));
}

// The pre-activation loss reaches every encoder row through every token: a dense product, by tiles.
void Step::Impl::encoder_rows_with_preactivation(const AdamStep* adam, Index layer,
                                                 bool add_bias_gradient) {
    const Index d = shape.d_model;
    const EncoderOperand x = encoder_inputs(batch_tokens(), layer);
    const Index tile = backend.encode_tile(tokens, d);
    for (Index f = 0; f < local_features(); f += tile) {
        const Index n = std::min(tile, local_features() - f);
        const Index row = layer * local_features() + f;
        const ParamRows weight = rows_of(params.encoder(layer), f, n);
        const Matrix<float> pre = tile_of(tile_pre, n, tokens);
        const Matrix<float> g = tile_of(tile_gradient, n, tokens);
        const Matrix<float> weight_gradient = tile_of(encoder_gradient, n, d);
        backend.encode(x, weight, params.encoder_bias().value.elements.subspan(row, n), pre);
        backend.scatter_gradient(*active, row, g);
        const Span<float> bias =
            add_bias_gradient ? encoder_bias_gradient.span().subspan(row, n) : Span<float>();
        backend.preactivation_gradient(static_cast<float>(preactivation_weight()), pre, g, bias);
        backend.gemm(false, false, 1, g, x.value, 0, weight_gradient);
        apply(adam, weight_gradient, weight);
    }
}

void Step::Impl::apply(const AdamStep* adam, Matrix<const float> g, const ParamRows& array) {
    if (adam == nullptr)
        backend.squared_norm(g, total(gradient_squared));
    else
        backend.adam(*adam, g, array);
}

/// Of all parameters, from the squares that a walk over the rows has left. Collective.
double Step::Impl::gradient_norm(const StepScalars& scalars) {
    backend.squared_norm({encoder_bias_gradient.span(), 1, rows()}, total(gradient_squared));
    if (rule.activation == Activation::jumprelu)
        backend.squared_norm({threshold_gradient.span(), 1, rows()}, total(gradient_squared));
    for (Index t = 0; t < shape.layers; ++t)
        backend.squared_norm(
            {bias_gradient.span().subspan(t * shape.d_model, shape.d_model), 1, shape.d_model},
            bias_squares(t));
    const std::vector<double> squares = download_totals();
    const auto layers = static_cast<std::size_t>(shape.layers);
    double squared = grid.feature().all_reduce_sum(squares[layers + gradient_squared]);
    for (std::size_t t = 0; t < layers; ++t)
        squared += squares[layers + totals_between + t] *
                   (scalars.reference_biases ? static_cast<double>(t + 1) : 1.0);
    return std::sqrt(squared);
}

void Step::Impl::update_vectors(const StepScalars& scalars, float gradient_scale) {
    AdamStep adam = scalars.adam_bias;
    adam.gradient_scale = gradient_scale;
    backend.adam(adam, {encoder_bias_gradient.span(), 1, rows()}, params.encoder_bias());
    if (rule.activation == Activation::jumprelu) {
        AdamStep threshold = adam;
        threshold.largest_value = largest_log_threshold;
        backend.adam(threshold, {threshold_gradient.span(), 1, rows()}, params.log_threshold());
    }
    for (Index t = 0; t < shape.layers; ++t) {
        AdamStep target = adam;
        if (scalars.reference_biases) target.step_size *= static_cast<float>(t + 1);
        backend.adam(
            target,
            {bias_gradient.span().subspan(t * shape.d_model, shape.d_model), 1, shape.d_model},
            rows_of(params.decoder_bias(), t, 1));
    }
}

Step::Step(Backend& backend, const ProcessGrid& grid, Params& params, const ModelConfig& model,
           const LossConfig& loss, const std::vector<float>& error_scale, Index max_tokens)
    : impl_(std::make_unique<Impl>(backend, grid, params, model, loss, error_scale, max_tokens)) {
    reset_evaluation();
}

Step::~Step() = default;

StepResult Step::train(const HostBatch& batch, const StepScalars& scalars) {
    Impl& s = *impl_;
    StepResult result;
    s.forward(batch, true);
    s.merge_replicas();
    s.stage("merge_replicas");
    s.penalty(scalars);
    s.read_sums(result);
    s.stage("wait");
    if (result.finite) {
        s.share_slices(s.gradient);
        s.stage("gather_gradient");
        s.backward(scalars, result);
    }
    if (result.finite) s.backend.age(s.fired_tokens.span(), s.silence.span());
    result.total = result.reconstruction + result.sparsity + result.preactivation;
    return result;
}

StepResult Step::evaluate(const HostBatch& batch) {
    Impl& s = *impl_;
    StepResult result;
    s.penalised = false;
    s.forward(batch, false);
    s.read_sums(result);
    result.preactivation = 0;
    result.total = result.reconstruction;
    const Shard own{0, s.slice.size()};
    s.backend.accumulate(s.token_rows(s.error, own), s.token_rows(s.targets, own), s.sums);
    s.evaluated_tokens += s.tokens;
    const auto add = [&](Buffer<Index>& counts, std::vector<Index>& total) {
        std::vector<Index> host(total.size());
        s.backend.download(Span<const Index>(counts.span()), std::span<Index>(host));
        for (std::size_t i = 0; i < host.size(); ++i) total[i] += host[i];
    };
    add(s.active_tokens, s.evaluated_active);
    add(s.fired_tokens, s.evaluated_fired);
    return result;
}

std::string Step::not_finite() {
    Impl& s = *impl_;
    const double broken = s.backend.download_one(Span<const double>(s.params.not_finite()));
    if (s.grid.all().all_reduce_sum(broken) == 0) return "";
    return s.params.find_not_finite(s.grid.all());
}

void Step::reset_evaluation() {
    Impl& s = *impl_;
    s.evaluated_tokens = 0;
    for (Buffer<double>* sum :
         {&s.sums.target, &s.sums.target_squared, &s.sums.error, &s.sums.error_squared})
        s.backend.zero(sum->span());
    s.evaluated_active.assign(static_cast<std::size_t>(s.rows()), 0);
    s.evaluated_fired.assign(static_cast<std::size_t>(s.rows()), 0);
}

Step::EvaluationSums Step::evaluation_sums() {
    Impl& s = *impl_;
    EvaluationSums out;
    out.tokens = s.evaluated_tokens;
    const auto stride = static_cast<std::size_t>(s.decoder_stride());
    std::vector<float> scale(stride);
    s.backend.download(Span<const float>(s.scale.span()), std::span<float>(scale));
    const auto gather = [&](Buffer<double>& sum, std::vector<double>& total, bool squared) {
        total.resize(stride);
        s.backend.download(Span<const double>(sum.span()), std::span<double>(total));
        s.grid.all().all_reduce_sum(std::span<double>(total));
        for (std::size_t i = 0; i < stride; ++i) {
            const auto factor = static_cast<double>(scale[i]);
            total[i] *= squared ? factor * factor : factor;
        }
    };
    gather(s.sums.target, out.target, false);
    gather(s.sums.target_squared, out.target_squared, true);
    gather(s.sums.error, out.error, false);
    gather(s.sums.error_squared, out.error_squared, true);

    // Shards lie side by side in every layer; summing into zeros puts them there.
    const auto place = [&](const std::vector<Index>& own, std::vector<Index>& total) {
        total.assign(static_cast<std::size_t>(s.shape.layers * s.shape.features), 0);
        const Shard features = s.params.features();
        for (Index layer = 0; layer < s.shape.layers; ++layer)
            std::copy_n(own.begin() + layer * features.size(), features.size(),
                        total.begin() + layer * s.shape.features + features.begin);
        s.grid.feature().all_reduce_sum(std::span<Index>(total));
    };
    place(s.evaluated_active, out.active_tokens);
    place(s.evaluated_fired, out.fired_tokens);
    return out;
}

Span<Index> Step::silence() {
    return impl_->silence.span();
}

std::vector<Index> Step::dead_features(Index window) {
    Impl& s = *impl_;
    std::vector<Index> silence(static_cast<std::size_t>(s.rows()));
    s.backend.download(Span<const Index>(s.silence.span()), std::span<Index>(silence));
    std::vector<Index> dead(static_cast<std::size_t>(s.shape.layers), 0);
    for (std::size_t row = 0; row < silence.size(); ++row)
        if (silence[row] > window) ++dead[row / static_cast<std::size_t>(s.local_features())];
    s.grid.feature().all_reduce_sum(std::span<Index>(dead));
    return dead;
}

std::vector<std::pair<std::string, double>> Step::take_stage_seconds() {
    return impl_->clock->take();
}

}  // namespace clt
