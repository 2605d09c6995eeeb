#include "analyse/rates.hpp"

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

}  // namespace

Machine measure_rates(Backend& backend, Index tokens, Index d_model, const Communicator& all) {
    MemoryResource& memory = backend.memory();
    Machine machine;
    {
        const Index b = std::clamp<Index>(tokens, 1, most_probe_tokens);
        const Index f = most_probe_features;
        Buffer<float> x(memory, b * d_model, Purpose::workspace);
        Buffer<float> weight(memory, f * d_model, Purpose::workspace);
        Buffer<float> product(memory, f * b, Purpose::workspace);
        backend.zero(x.span());
        backend.zero(weight.span());
        machine.gflops =
            1e-9 * best_rate(2.0 * static_cast<double>(b) * static_cast<double>(f) *
                                 static_cast<double>(d_model),
                             backend, all, [&] {
                                 backend.gemm(false, true, 1, {weight.span(), f, d_model},
                                              {x.span(), b, d_model}, 0, {product.span(), f, b});
                             });
    }
    const Index n = stream_elements;
    Buffer<float> arrays(memory, 4 * n, Purpose::workspace);
    Buffer<double> sum(memory, 1, Purpose::workspace);
    backend.zero(arrays.span());
    const auto row = [&](Index i) { return Matrix<float>(arrays.span().subspan(i * n, n), 1, n); };
    const double element = 4.0 * static_cast<double>(n);
    const double optimiser = best_rate(7 * element, backend, all, [&] {
        backend.adam(AdamStep{}, row(0), {row(1), row(2), row(3)});
    });
    const double reading = best_rate(4 * element, backend, all, [&] {
        backend.squared_norm({arrays.span(), 4, n}, sum.span());
    });
    const double copying = best_rate(2 * element, backend, all, [&] {
        backend.copy(Span<const float>(row(0).elements), row(1).elements);
    });
    machine.gbytes_per_s = 1e-9 * std::max({optimiser, reading, copying});
    return machine;
}

}  // namespace clt
