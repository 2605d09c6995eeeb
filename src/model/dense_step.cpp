// The dense path of a step: relu, and jumprelu while most pre-activations pass, where gathers would
// cost more than products. By tiles of features; [B, L*F] never exists, the backward walk encodes a
// tile again instead.
#include <algorithm>

#include "model/step_impl.hpp"

namespace clt {

void Step::Impl::dense_decode() {
    const Index d = shape.d_model;
    const Index local = local_features();
    const Index n_tokens = own_tokens.size();
    const Index tile = backend.encode_tile(n_tokens, d);
    backend.zero(partial.span());
    for (Index layer = 0; layer < shape.layers; ++layer) {
        const Index width = shape.decoder_width(layer);
        const Matrix<float> out = columns(partial, {0, n_tokens}, layer * d, width);
        for (Index f = 0; f < local; f += tile) {
            const Index n = std::min(tile, local - f);
            const Index row = layer * local + f;
            const Matrix<float> pre = tile_of(tile_pre, n, n_tokens);
            const Matrix<float> value = tile_of(tile_value, n, n_tokens);
            backend.encode(encoder_inputs(own_tokens, layer), rows_of(params.encoder(layer), f, n),
                           params.encoder_bias().value.elements.subspan(row, n), pre);
            if (loss.preactivation > 0) backend.negative_sum(pre, total(negative));
            backend.activate(rule, threshold_rows(row, n), pre, value,
                             active_tokens.span().subspan(row, n),
                             fired_tokens.span().subspan(row, n));
            backend.gemm(true, false, 1, value, rows_of(params.decoder(layer), f, n).value, 1, out);
        }
    }
}

void Step::Impl::dense_rows(const StepScalars& scalars, const AdamStep* adam) {
    if (penalised) backend.zero(total(tanh_penalty));  // each walk forms it
    for (Index layer = 0; layer < shape.layers; ++layer) dense_rows_of(layer, scalars, adam);
    stage("dense_rows");
}

void Step::Impl::dense_rows_of(Index layer, const StepScalars& scalars, const AdamStep* adam) {
    const Index d = shape.d_model;
    const Index local = local_features();
    const Index tile = backend.encode_tile(tokens, d);
    const Index width = shape.decoder_width(layer);
    const EncoderOperand x = encoder_inputs(batch_tokens(), layer);
    const Matrix<const float> residual = columns(gradient, batch_tokens(), layer * d, width);
    for (Index f = 0; f < local; f += tile) {
        const Index n = std::min(tile, local - f);
        const Index row = layer * local + f;
        const ParamRows encoder = rows_of(params.encoder(layer), f, n);
        const ParamRows decoder = rows_of(params.decoder(layer), f, n);
        const Matrix<float> pre = tile_of(tile_pre, n, tokens);
        const Matrix<float> value = tile_of(tile_value, n, tokens);
        const Matrix<float> g = tile_of(tile_gradient, n, tokens);
        const Matrix<float> decoder_gradient = tile_of(row_gradient, n, width);
        const Matrix<float> weight_gradient = tile_of(encoder_gradient, n, d);

        backend.encode(x, encoder, params.encoder_bias().value.elements.subspan(row, n), pre);
        backend.activate(rule, threshold_rows(row, n), pre, value, {}, {});
        backend.gemm(false, false, 1, value, residual, 0, decoder_gradient);
        backend.gemm(false, true, 1, decoder.value, residual, 0, g);
        if (penalised) {
            const Span<float> factor = coefficient.span().subspan(row, n);
            backend.sparsity_penalty_dense(static_cast<float>(penalty_weight(scalars)),
                                           static_cast<float>(loss.sparsity_scale),
                                           norms.span().subspan(row, n), value, g, factor,
                                           total(tanh_penalty));
            backend.add_scaled_rows(factor, decoder.value, decoder_gradient);
        }
        const Span<float> bias = encoder_bias_gradient.span().subspan(row, n);
        backend.activation_gradient_dense(
            rule, threshold_rows(row, n), static_cast<float>(model.bandwidth), pre, g, bias,
            threshold_gradient.size() == 0 ? Span<float>()
                                           : threshold_gradient.span().subspan(row, n));
        if (loss.preactivation > 0)
            backend.preactivation_gradient(static_cast<float>(preactivation_weight()), pre, g,
                                           bias);
        backend.gemm(false, false, 1, g, x.value, 0, weight_gradient);
        apply(adam, decoder_gradient, decoder);
        apply(adam, weight_gradient, encoder);
    }
}

}  // namespace clt
