// What each kernel of the CUDA backend moves in a step, and the time it should take. Kept beside
// src/backend/cuda/, from which the counts of passes are read off.
#include <bit>

#include "model/cost_sizes.hpp"

namespace clt {
namespace {

// Shares of the machine's rates that such kernels reach, and what is not among those rates. All of
// them are estimates for an H100 until they are measured: a product with k = 768 has half the
// arithmetic of a square one for each byte of its result; streams beside gathers; L2 reads.
constexpr double product_share = 0.75;
constexpr double stream_share = 0.9;
constexpr double cache_bytes_per_s = 5.5e12;
constexpr double launch_s = 3e-6;  // from the end of a kernel to the next one's first block

double real(Index n) {
    return static_cast<double>(n);
}

/// Passes of a radix select: digits of the keys and of the positions (model/selection.cpp).
Index select_passes(const CostQuery& q, const Sizes& s) {
    const int width = digit_bits(s.per_token);
    const Index columns = s.layers * q.shape.features * (s.per_token ? 1 : s.batch);
    const auto position_bits =
        static_cast<int>(std::bit_width(static_cast<std::uint64_t>(columns)));
    return (32 + width - 1) / width + (position_bits + width - 1) / width;
}

class Kernels {
  public:
    void add(const char* stage, const char* kernel, Index launches, double flop, double bytes,
             double cache_bytes, bool float32 = false) {
        kernels_.push_back({stage, kernel, launches, flop, bytes, cache_bytes, float32});
    }
    std::vector<KernelCost> take() { return std::move(kernels_); }

  private:
    std::vector<KernelCost> kernels_;
};

}  // namespace

std::vector<KernelCost> cuda_kernels(const CostQuery& q, const Sizes& s) {
    const Index tiles = s.layers * part_of(s.features, std::max<Index>(1, q.tile));
    // Of the rows' columns, 768 each (rows.cu).
    const Index encoder_panels = s.layers * part_of(s.d, 768);
    Index decoder_panels = 0;
    for (Index targets = 1; targets <= s.layers; ++targets)
        decoder_panels += part_of(targets * s.d, 768);
    const double x = real(float_bytes * s.batch * s.stride);
    const double own = real(float_bytes * s.replica * s.stride);
    const double slice = real(float_bytes * s.slice * s.stride);
    const double factor_bytes = real(q.rounded ? rounded_bytes : float_bytes);
    const double tile_values = real(float_bytes * s.rows * s.replica);  // all tiles together
    const double walks = q.gradient_clip > 0 ? 2 : 1;
    const double encoder = real(float_bytes * s.encoder);
    const double decoder = real(float_bytes * s.decoder);
    const double row = real(float_bytes) * s.row_width();
    const double encoder_flop = 2 * real(s.replica) * real(s.encoder);
    const double decoder_flop = 2 * real(s.replica) * real(s.decoder);
    const double replicas = real(s.batch) / real(s.replica);  // the rows see all tokens
    const double all_encoder_flop = replicas * encoder_flop;
    const double all_decoder_flop = replicas * decoder_flop;
    const double all_tile_values = replicas * tile_values;

    // An encoder product is one launch that writes the bias and one that adds the product to it.
    Kernels k;
    if (q.rounded) k.add("gather_inputs", "round", 1, 0, 1.5 * x, 0);
    if (s.ranked) {
        k.add("encode_select", "encoder_product", 2 * tiles, encoder_flop,
              factor_bytes * real(s.encoder) + factor_bytes * real(s.replica * s.stride),
              3 * tile_values);
        k.add("encode_select", "collect", 2 * tiles, 0, 16 * 1.25 * s.own_entries, tile_values);
        // A pass reads what it needs of each candidate; a quarter more pass the carried bound than
        // are kept.
        const double candidates = 1.25 * s.own_entries;
        k.add("encode_select", "select", 2 * select_passes(q, s) + 3, 0,
              real(select_passes(q, s)) * 8 * candidates + 48 * candidates, 0);
        k.add("encode_select", "index", 4, 0, 48 * s.own_entries + real(16 * s.rows), 0);
        k.add("decode", "order_by_token", 8, 0, 80 * s.own_entries, 0);
        k.add("decode", "decode", s.layers, 0, std::min(row * s.own_entries, decoder) + own,
              row * s.own_entries + real(s.layers + 1) * own);
    } else {
        k.add("dense_decode", "encoder_product", 2 * tiles, encoder_flop,
              factor_bytes * real(s.encoder), 3 * tile_values);
        k.add("dense_decode", "activate", tiles, 0, 0, 2 * tile_values);
        k.add("dense_decode", "gemm", tiles, decoder_flop, decoder, tile_values, true);
    }
    k.add("residual", "residual", 2, 0, 4 * slice, 0);
    k.add("residual", "squared_norm", 2, 0, slice, 0);
    if (q.loss.sparsity > 0) k.add("penalty", "row_norms", s.layers, 0, decoder, 0);
    if (s.ranked) {
        // Each (source, target) reads its target's slice of the gradient once from memory.
        const double slices =
            real(float_bytes * s.batch * s.d) * real(s.layers * (s.layers + 1) / 2);
        k.add("decoder_rows", "rows", static_cast<Index>(walks) * decoder_panels, 0,
              (5 + walks) * decoder + walks * slices, walks * row * s.entries);
        k.add("encoder_rows", "activation_gradient", 1, 0, 20 * s.entries, 0);
        if (q.loss.preactivation > 0) {  // dense: encoded again, and a product for the gradient
            k.add("encoder_rows", "encoder_product", static_cast<Index>(2 * walks) * tiles,
                  walks * all_encoder_flop, walks * encoder, 3 * walks * all_tile_values);
            k.add("encoder_rows", "scatter and pull up", static_cast<Index>(2 * walks) * tiles, 0,
                  0, 4 * walks * all_tile_values);
            k.add("encoder_rows", "gemm", static_cast<Index>(walks) * tiles,
                  walks * all_encoder_flop, walks * encoder, walks * all_tile_values, true);
            k.add("encoder_rows", "adam", tiles, 0, 7 * encoder, 0);
        } else {
            k.add("encoder_rows", "rows", static_cast<Index>(walks) * encoder_panels, 0,
                  (5 + walks) * encoder + (q.rounded ? 0.5 : 0) * encoder + walks * x,
                  walks * real(float_bytes * s.d) * s.entries);
        }
    } else {
        k.add("dense_rows", "encoder_product", static_cast<Index>(2 * walks) * tiles,
              walks * all_encoder_flop, walks * encoder, 3 * walks * all_tile_values);
        k.add("dense_rows", "gemm", static_cast<Index>(3 * walks) * tiles,
              walks * (all_encoder_flop + 2 * all_decoder_flop), walks * (encoder + 2 * decoder),
              4 * walks * all_tile_values, true);
        k.add("dense_rows", "adam", 2 * tiles, 0, 7 * (encoder + decoder), 0);
    }
    k.add("vectors", "column_sums", 2, 0, x, 0);
    k.add("vectors", "adam", 2 + s.layers, 0, real(7 * float_bytes * s.vectors()), 0);
    return k.take();
}

double expected_s(const KernelCost& kernel, const Machine& machine) {
    const double product_s = kernel.float32 && machine.float32_gflops > 0
                                 ? kernel.flop / (1e9 * machine.float32_gflops)
                                 : kernel.flop / (product_share * 1e9 * machine.gflops);
    return std::max({product_s, kernel.bytes / (stream_share * 1e9 * machine.gbytes_per_s),
                     kernel.cache_bytes / cache_bytes_per_s}) +
           launch_s * static_cast<double>(kernel.launches);
}

}  // namespace clt
