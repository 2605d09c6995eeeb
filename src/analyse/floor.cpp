#include "analyse/floor.hpp"

#include <algorithm>
#include <functional>

#include "clt/base/stopwatch.hpp"

namespace clt {
namespace {

constexpr int repeats = 5;
constexpr Index most_probe_features = 2048;
constexpr Index most_probe_tokens = 4096;
constexpr Index stream_elements = Index{1} << 23;  // of 4 arrays: far beyond the caches

// Work per second: the best of a few runs in which all ranks work at once, the first a warm-up.
double best_rate(double work, Backend& backend, const Communicator& all,
                 const std::function<void()>& run) {
    double best = 0;
    for (int i = 0; i <= repeats; ++i) {
        all.barrier();
        const Stopwatch watch;
        run();
        backend.synchronize();
        if (i > 0) best = std::max(best, work / watch.seconds());
    }
    return all.all_reduce_min(best);
}

double ratio(Index part, Index whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

MachineRates measure_rates(Backend& backend, Index tokens, Index d_model, const Communicator& all) {
    MemoryResource& memory = backend.memory();
    MachineRates rates;
    {
        const Index b = std::clamp<Index>(tokens, 1, most_probe_tokens);
        const Index f = most_probe_features;
        Buffer<float> x(memory, b * d_model, Purpose::workspace);
        Buffer<float> weight(memory, f * d_model, Purpose::workspace);
        Buffer<float> product(memory, f * b, Purpose::workspace);
        backend.zero(x.span());
        backend.zero(weight.span());
        rates.flop_per_s = best_rate(
            2.0 * static_cast<double>(b) * static_cast<double>(f) * static_cast<double>(d_model),
            backend, all, [&] {
                backend.gemm(false, true, 1, {weight.span(), f, d_model}, {x.span(), b, d_model}, 0,
                             {product.span(), f, b});
            });
    }
    const Index n = stream_elements;
    Buffer<float> arrays(memory, 4 * n, Purpose::workspace);
    backend.zero(arrays.span());
    const auto row = [&](Index i) { return Matrix<float>(arrays.span().subspan(i * n, n), 1, n); };
    const double element = 4.0 * static_cast<double>(n);
    const double optimiser = best_rate(7 * element, backend, all, [&] {
        backend.adam(AdamStep{}, row(0), {row(1), row(2), row(3)});
    });
    const double reading = best_rate(4 * element, backend, all, [&] {
        backend.squared_norm({arrays.span(), 4, n});
    });
    const double copying = best_rate(2 * element, backend, all, [&] {
        backend.copy(Span<const float>(row(0).elements), row(1).elements);
    });
    rates.bytes_per_s = std::max({optimiser, reading, copying});
    return rates;
}

StepFloor step_floor(const Shape& shape, Index tokens, const std::vector<double>& l0,
                     const ProcessGrid& grid, const MachineRates& rates) {
    // Shares of the first rank of the grid's last part: shard_of gives the remainder to the last.
    const Index replica = shard_of(tokens, grid.data_parts() - 1, grid.data_parts()).size();
    const Index local =
        shard_of(shape.features, grid.feature_parts() - 1, grid.feature_parts()).size();
    const double share = ratio(local, shape.features);
    const auto d = static_cast<double>(shape.d_model);
    const auto all_tokens = static_cast<double>(tokens);
    const auto own_tokens = static_cast<double>(replica);

    double gathered = 0;        // decoder elements that one token's active features add up
    double active_decoder = 0;  // elements of decoder rows that are active at least once
    double active = 0;
    for (std::size_t l = 0; l < l0.size(); ++l) {
        const auto width = static_cast<double>(shape.decoder_width(static_cast<Index>(l)));
        gathered += l0[l] * share * width;
        active += l0[l] * share;
        active_decoder += std::min(all_tokens * l0[l] * share, static_cast<double>(local)) * width;
    }
    const auto encoder = static_cast<double>(shape.layers * local) * d;
    const auto slower = [&](double flop, double bytes) {
        return std::max(flop / rates.flop_per_s, bytes / rates.bytes_per_s);
    };
    StepFloor floor;
    floor.encode_s = 2 * own_tokens * encoder / rates.flop_per_s;
    floor.decode_s =
        slower(2 * own_tokens * gathered, 4 * std::min(own_tokens * gathered, active_decoder));
    floor.rows_s = slower(4 * all_tokens * gathered + 2 * all_tokens * active * d,
                          24 * (encoder + active_decoder));
    floor.batch_s = 4 * all_tokens * static_cast<double>(shape.layers) * d *
                    (1 + 3 * ratio(1, grid.all().size())) / rates.bytes_per_s;
    return floor;
}

}  // namespace clt
