#include "analyse/rates.hpp"

#include <algorithm>
#include <functional>

#include "clt/base/philox.hpp"
#include "clt/base/stopwatch.hpp"

namespace clt {
namespace {

constexpr int repeats = 3;
constexpr int calls = 4;  // of one timing: the last one's wait counts for less
constexpr Index most_probe_extent = 8192;
constexpr Index most_stream_elements = Index{1} << 26;  // of 4 arrays: far beyond the caches

// Work per second: the best of a few timings in which all ranks work at once, the first a warm-up.
double best_rate(double work, Backend& backend, const Communicator& all,
                 const std::function<void()>& run) {
    double best = 0;
    for (int i = 0; i <= repeats; ++i) {
        all.barrier();
        const Stopwatch watch;
        for (int call = 0; call < calls; ++call) run();
        backend.synchronize();
        if (i > 0) best = std::max(best, calls * work / watch.seconds());
    }
    return all.all_reduce_min(best);
}

// Random numbers: a GPU multiplies zeros an eighth faster, as they draw less power.
void fill(Backend& backend, Span<float> values) {
    std::vector<float> numbers(static_cast<std::size_t>(std::min<Index>(values.size(), 1 << 20)));
    for (std::size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = random_uniform(/*seed=*/1, RandomPurpose::synthetic_batch, i, -1, 1);
    const auto n = static_cast<Index>(numbers.size());
    for (Index at = 0; at < values.size(); at += n) {
        const Index count = std::min(n, values.size() - at);
        backend.upload(std::span<const float>(numbers).first(static_cast<std::size_t>(count)),
                       values.subspan(at, count));
    }
}

// A factor of the encoder's product, [rows, cols].
struct Factor {
    Factor(Backend& backend, Index n_rows, Index n_cols)
        : rows(n_rows), cols(n_cols), value(backend.memory(), rows * cols, Purpose::workspace) {
        fill(backend, value.span());
        if (!backend.rounds_encoder()) return;
        rounded = Buffer<Bfloat16>(backend.memory(), rows * cols, Purpose::workspace);
        backend.round(Matrix<float>(value.span(), rows, cols), {rounded.span(), rows, cols});
    }
    EncoderOperand operand() {
        if (rounded.size() == 0) return Matrix<const float>(value.span(), rows, cols);
        return {Matrix<float>(value.span(), rows, cols),
                Matrix<Bfloat16>(rounded.span(), rows, cols)};
    }
    Index rows, cols;
    Buffer<float> value;
    Buffer<Bfloat16> rounded;
};

}  // namespace

Machine measure_rates(Backend& backend, Index tokens, Index d_model, const Communicator& all) {
    MemoryResource& memory = backend.memory();
    Machine machine;
    {
        // Near enough to a cube to run at the full rate, which the encoder's own shape may not.
        const Index extent = std::clamp<Index>(2 * tokens, 1, most_probe_extent);
        const Index depth = std::clamp<Index>(tokens, d_model, most_probe_extent);
        Factor x(backend, extent, depth);
        Factor weight(backend, extent, depth);
        Buffer<float> bias(memory, extent, Purpose::workspace);
        Buffer<float> product(memory, extent * extent, Purpose::workspace);
        backend.zero(bias.span());
        machine.gflops =
            1e-9 * best_rate(2.0 * static_cast<double>(extent) * static_cast<double>(extent) *
                                 static_cast<double>(depth),
                             backend, all, [&] {
                                 backend.encode(x.operand(), weight.operand(), bias.span(),
                                                {product.span(), extent, extent});
                             });
        if (backend.rounds_encoder())
            machine.float32_gflops =
                1e-9 * best_rate(2.0 * static_cast<double>(extent) * static_cast<double>(extent) *
                                     static_cast<double>(depth),
                                 backend, all, [&] {
                                     backend.gemm(false, true, 1, weight.operand().value,
                                                  x.operand().value, 0,
                                                  {product.span(), extent, extent});
                                 });
    }
    const Index n = std::min(16 * tokens * d_model, most_stream_elements);
    Buffer<float> arrays(memory, 4 * n, Purpose::workspace);
    Buffer<double> sum(memory, 1, Purpose::workspace);
    backend.zero(arrays.span());
    backend.zero(sum.span());
    const auto row = [&](Index i) { return Matrix<float>(arrays.span().subspan(i * n, n), 1, n); };
    const double element = 4.0 * static_cast<double>(n);
    const double optimiser = best_rate(7 * element, backend, all, [&] {
        backend.adam(AdamStep{}, row(0), {row(1), row(2), row(3), {}});
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
