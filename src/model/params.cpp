#include "clt/model/params.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "clt/base/philox.hpp"

namespace clt {
namespace {

// Uniform values of global ids first_id, first_id + 1, ... in [-bound, bound).
void fill_uniform(std::uint64_t seed, RandomPurpose purpose, std::uint64_t first_id, float bound,
                  std::span<float> out) {
    const auto n = static_cast<Index>(out.size());
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < n; ++i)
        out[static_cast<std::size_t>(i)] =
            random_uniform(seed, purpose, first_id + static_cast<std::uint64_t>(i), -bound, bound);
}

constexpr Index staging_elements = Index{1} << 22;

// Rows [0, rows) of `values` get the global ids first_id + row * cols + column.
void upload_uniform(Backend& backend, std::uint64_t seed, RandomPurpose purpose,
                    std::uint64_t first_id, float bound, Span<float> values) {
    std::vector<float> staging(static_cast<std::size_t>(std::min(staging_elements, values.size())));
    for (Index at = 0; at < values.size(); at += staging_elements) {
        const Index count = std::min(staging_elements, values.size() - at);
        const std::span<float> part(staging.data(), static_cast<std::size_t>(count));
        fill_uniform(seed, purpose, first_id + static_cast<std::uint64_t>(at), bound, part);
        backend.upload(std::span<const float>(part), values.subspan(at, count));
    }
}

/// "encoder/layer_2/weight" and row 17 as words.
std::string words_of(const std::string& name, Index row) {
    if (name == "decoder/bias") return fmt::format("decoder biases of target layer {}", row);
    const std::string layer = name.substr(name.find("layer_") + 6);
    const Index number = std::stoll(layer);
    const char* kind = name.starts_with("log_threshold")   ? "thresholds"
                       : name.starts_with("decoder")       ? "decoder rows"
                       : layer.find("/bias") != layer.npos ? "encoder biases"
                                                           : "encoder weights";
    return fmt::format("{} of layer {}, feature {}", kind, number, row);
}

/// The first row of m with a number that is not finite or beyond `largest`; -1: none.
Index find_row(Backend& backend, const Matrix<float>& m, float largest,
               std::vector<float>& staging) {
    const Index size = m.rows * m.cols;
    for (Index at = 0; at < size; at += staging_elements) {
        const Index count = std::min(staging_elements, size - at);
        staging.resize(static_cast<std::size_t>(count));
        backend.download(Span<const float>(m.elements.subspan(at, count)), std::span(staging));
        const auto broken = std::find_if(staging.begin(), staging.end(),
                                         [=](float x) { return !(std::fabs(x) <= largest); });
        if (broken != staging.end()) return (at + (broken - staging.begin())) / m.cols;
    }
    return -1;
}

}  // namespace

Params::Params(Backend& backend, const Shape& shape, Shard features, const ModelConfig& config,
               std::uint64_t seed)
    : backend_(backend),
      shape_(shape),
      features_(features),
      thresholds_(config.activation == "jumprelu") {
    CLT_CHECK(shape.layers > 0 && shape.d_model > 0 && shape.features > 0);
    const Index local = features.size();
    const Index d = shape.d_model;
    encoder_ = make_store(local_rows() * d);
    if (backend.rounds_encoder())
        encoder_rounded_ =
            Buffer<Bfloat16>(backend.memory(), local_rows() * d, Purpose::parameters);
    encoder_bias_ = make_store(local_rows());
    decoder_bias_ = make_store(shape.layers * d);
    not_finite_ = Buffer<double>(backend.memory(), 1, Purpose::workspace);
    const auto encoder_bound =
        static_cast<float>(1 / std::sqrt(static_cast<double>(shape.features)));
    const auto decoder_bound =
        static_cast<float>(1 / std::sqrt(static_cast<double>(shape.layers * d)));
    std::uint64_t decoder_id = 0;
    for (Index layer = 0; layer < shape.layers; ++layer) {
        upload_uniform(backend, seed, RandomPurpose::encoder_weight,
                       static_cast<std::uint64_t>((layer * shape.features + features.begin) * d),
                       encoder_bound, encoder_.value.span().subspan(layer * local * d, local * d));
        const Index width = shape.decoder_width(layer);
        decoder_.push_back(make_store(local * width));
        upload_uniform(backend, seed, RandomPurpose::decoder_weight,
                       decoder_id + static_cast<std::uint64_t>(features.begin * width),
                       decoder_bound, decoder_.back().value.span());
        decoder_id += static_cast<std::uint64_t>(shape.features * width);
    }
    if (thresholds_) {
        log_threshold_ = make_store(local_rows());
        const std::vector<float> initial(static_cast<std::size_t>(local_rows()),
                                         static_cast<float>(std::log(config.threshold)));
        backend.upload(std::span<const float>(initial), log_threshold_.value.span());
    }
    values_changed();
}

Params::Store Params::make_store(Index size) {
    Store store;
    MemoryResource& memory = backend_.memory();
    store.value = Buffer<float>(memory, size, Purpose::parameters);
    store.moment1 = Buffer<float>(memory, size, Purpose::moments);
    store.moment2 = Buffer<float>(memory, size, Purpose::moments);
    for (Buffer<float>* buffer : {&store.value, &store.moment1, &store.moment2})
        backend_.zero(buffer->span());
    return store;
}

void Params::values_changed() {
    backend_.zero(not_finite_.span());
    if (!backend_.rounds_encoder()) return;
    for (Index layer = 0; layer < shape_.layers; ++layer) {
        const ParamRows rows = encoder(layer);
        backend_.round(rows.value, rows.rounded);
    }
}

ParamRows Params::view(Store& store, Index offset, Index rows, Index cols) {
    const auto part = [&](Buffer<float>& buffer) {
        return Matrix<float>(buffer.span().subspan(offset, rows * cols), rows, cols);
    };
    return {part(store.value), part(store.moment1), part(store.moment2), {}, not_finite_.span()};
}

ParamRows Params::encoder(Index layer) {
    const Index local = features_.size();
    const Index first = layer * local * shape_.d_model;
    ParamRows rows = view(encoder_, first, local, shape_.d_model);
    if (encoder_rounded_.size() > 0)
        rows.rounded = {encoder_rounded_.span().subspan(first, local * shape_.d_model), local,
                        shape_.d_model};
    return rows;
}
ParamRows Params::encoder_bias() {
    return view(encoder_bias_, 0, 1, local_rows());
}
ParamRows Params::log_threshold() {
    return view(log_threshold_, 0, 1, log_threshold_.value.size());
}
ParamRows Params::decoder(Index layer) {
    return view(decoder_[static_cast<std::size_t>(layer)], 0, features_.size(),
                shape_.decoder_width(layer));
}
ParamRows Params::decoder_bias() {
    return view(decoder_bias_, 0, shape_.layers, shape_.d_model);
}

std::vector<ParamArray> Params::arrays() {
    const Index local = features_.size();
    std::vector<ParamArray> all;
    const auto add = [&](std::string name, ParamRows rows) {
        all.push_back({std::move(name), rows, features_.begin, shape_.features});
    };
    for (Index layer = 0; layer < shape_.layers; ++layer) {
        add(fmt::format("encoder/layer_{}/weight", layer), encoder(layer));
        add(fmt::format("encoder/layer_{}/bias", layer),
            view(encoder_bias_, layer * local, local, 1));
    }
    for (Index layer = 0; layer < shape_.layers; ++layer)
        add(fmt::format("decoder/layer_{}/weight", layer), decoder(layer));
    all.push_back({"decoder/bias", decoder_bias(), 0, shape_.layers, true});
    if (thresholds_)
        for (Index layer = 0; layer < shape_.layers; ++layer)
            add(fmt::format("log_threshold/layer_{}", layer),
                view(log_threshold_, layer * local, local, 1));
    return all;
}

std::string Params::find_not_finite(const Communicator& all) {
    constexpr std::array<const char*, 3> kinds{"", "first moments of ", "second moments of "};
    constexpr Index none = std::numeric_limits<Index>::max();
    const std::vector<ParamArray> list = arrays();
    std::vector<float> staging;
    Index place = none;  // 3 * array + kind
    Index row = none;
    for (Index i = 0; place == none && i < static_cast<Index>(3 * list.size()); ++i) {
        const ParamArray& array = list[static_cast<std::size_t>(i / 3)];
        const std::array<const Matrix<float>*, 3> parts{&array.rows.value, &array.rows.moment1,
                                                        &array.rows.moment2};
        const bool is_threshold = i % 3 == 0 && array.name.starts_with("log_threshold");
        const Index found = find_row(
            backend_, *parts[static_cast<std::size_t>(i % 3)],
            is_threshold ? largest_log_threshold : std::numeric_limits<float>::max(), staging);
        if (found < 0) continue;
        place = i;
        row = array.first_row + found;
    }
    const Index first = all.all_reduce_min(place);
    if (first == none) return "";
    row = all.all_reduce_min(place == first ? row : none);
    return kinds[static_cast<std::size_t>(first % 3)] +
           words_of(list[static_cast<std::size_t>(first / 3)].name, row);
}

}  // namespace clt
