// Gradients of weight rows, fused with their update.
#include "backend/cuda/cuda_backend.hpp"
#include "backend/cuda/device_matrix.hpp"
#include "backend/cuda/rows.hpp"
#include "backend/shapes.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

// What decoder and encoder rows have in common.
cuda::RowVisit visit_of(const ActiveSet& active, Index layer, Index features,
                        Matrix<const float> source, const AdamStep* adam, const ParamRows& params,
                        Span<double> squares) {
    const Matrix<const float> shape = params.value;
    CLT_CHECK(shape.rows == features && (layer + 1) * features <= active.rows);
    CLT_CHECK(source.cols == shape.cols && source.rows == active.tokens);
    if (adam == nullptr)
        CLT_CHECK(squares.size() == 1);
    else
        for (const Matrix<float>& moment : {params.moment1, params.moment2})
            CLT_CHECK(moment.rows == shape.rows && moment.cols == shape.cols);
    cuda::RowVisit visit;
    visit.rows = features;
    visit.width = shape.cols;
    visit.row_start = raw(active.row_start.span()) + layer * features;
    visit.token = raw(active.token.span());
    visit.source = raw(source);
    visit.source_stride = source.stride;
    visit.value = raw(params.value);
    visit.value_stride = params.value.stride;
    visit.moment1 = raw(params.moment1);
    visit.moment1_stride = params.moment1.stride;
    visit.moment2 = raw(params.moment2);
    visit.moment2_stride = params.moment2.stride;
    const cuda::DeviceMatrix<std::uint16_t> rounded = cuda::device_bits(params.rounded);
    CLT_CHECK(rounded.data == nullptr ||
              (rounded.rows == shape.rows && rounded.cols == shape.cols));
    visit.rounded = rounded.data;
    visit.rounded_stride = rounded.stride;
    visit.not_finite = params.not_finite.empty() ? nullptr : raw(params.not_finite);
    visit.update = adam != nullptr;
    if (visit.update) visit.adam = *adam;
    visit.squares = squares.empty() ? nullptr : raw(squares);
    return visit;
}

}  // namespace

void CudaBackend::decoder_rows(ActiveSet& active, Index layer, Index features,
                               Matrix<const float> gradient, Span<const float> coefficient,
                               bool activations, const AdamStep* adam, ParamRows params,
                               Span<double> squares) {
    CLT_CHECK(coefficient.empty() || coefficient.size() == features);
    cuda::RowVisit visit = visit_of(active, layer, features,
                                    targets_of(gradient, params.value.cols), adam, params, squares);
    visit.factor = raw(active.value.span());
    visit.dot = activations ? raw(active.gradient.span()) : nullptr;
    visit.coefficient = coefficient.empty() ? nullptr : raw(coefficient);
    cuda::visit_rows(visit, scratch<double>(adam == nullptr ? features : 0), stream());
}

void CudaBackend::encoder_rows(const ActiveSet& active, Index layer, Index features,
                               Matrix<const float> x, const AdamStep* adam, ParamRows params,
                               Span<double> squares) {
    cuda::RowVisit visit = visit_of(active, layer, features, x, adam, params, squares);
    visit.factor = raw(active.gradient.span());
    cuda::visit_rows(visit, scratch<double>(adam == nullptr ? features : 0), stream());
}

}  // namespace clt
