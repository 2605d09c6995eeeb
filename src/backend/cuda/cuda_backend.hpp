// The CUDA backend: one stream of work in order, copies of the next batch beside it, device memory
// from one pool. Kernels stand in X.cu, their launchers (plain pointers) in X.hpp, and the methods
// below that call them in X_host.cpp, X as in cpu/. Kernels are documented on the page they
// implement.
#pragma once

#include <memory>
#include <vector>

#include "backend/cuda/device.hpp"
#include "clt/backend/backend.hpp"

namespace clt {

class CudaBackend final : public Backend {
  public:
    /// device: index on this host.  Throws LibraryError.
    CudaBackend(int device, Index ranks_on_device, cuda::Precision precision);
    ~CudaBackend() override;

    std::string name() const override;
    MemoryResource& memory() override;
    std::optional<Index> free_bytes() const override;
    std::unique_ptr<Collectives> collectives(const Communicator& communicator) override;
    Index communicator_bytes() const override;
    std::unique_ptr<StageClock> stage_clock() override;
    void synchronize() override;
    bool rounds_encoder() const override;
    Index encode_tile(Index tokens, Index d_model) const override;

    // ---- moving data
    void upload_bytes(const void* host, void* device, std::size_t bytes) override;
    void upload_ahead_bytes(const void* host, void* device, std::size_t bytes) override;
    bool uploads_ahead() const override { return true; }
    std::shared_ptr<const void> pin(const void* host, std::size_t bytes) override;
    void download_bytes(const void* device, void* host, std::size_t bytes) override;
    void copy_bytes(const void* from, void* to, std::size_t bytes) override;
    void zero_bytes(void* device, std::size_t bytes) override;

    // ---- dense products (dense_host.cpp)
    void gemm(bool transpose_a, bool transpose_b, float alpha, Matrix<const float> a,
              Matrix<const float> b, float beta, Matrix<float> c) override;

    // ---- encode and select (encode_host.cpp, select_host.cpp)
    void round(Matrix<const float> from, Matrix<Bfloat16> to) override;
    void encode(const EncoderOperand& x, const EncoderOperand& weight, Span<const float> bias,
                Matrix<float> pre) override;
    void tile_sums(Matrix<const float> pre, Span<double> sums) override;
    void negative_sum(Matrix<const float> pre, Span<double> sum) override;
    void collect(const CollectRule& rule, Matrix<const float> pre, Index first_row,
                 Span<const double> sums, Index sum_tokens, Span<const float> bound,
                 Span<const float> log_threshold, Candidates& out) override;
    void count_digits(const Candidates& candidates, const Cut& cut, int shift, int bits,
                      Span<Index> counts) override;
    void count_position_digits(const Candidates& candidates, const PositionMap& map, const Cut& cut,
                               int shift, int bits, Span<Index> counts) override;
    void choose_digit(Span<const Index> counts, int shift, int bits, bool positions,
                      Cut& cut) override;
    void keep(const PositionMap& map, const Cut& cut, Candidates& candidates) override;
    void raise_bound(const Cut& cut, Span<float> bound) override;

    // ---- active sets (index_host.cpp)
    void index(const CollectRule& rule, Span<const float> log_threshold, Index rows, Index tokens,
               const Candidates& candidates, ActiveSet& out) override;
    void merge(Span<const Index> row_starts, std::span<const Index> token_starts,
               std::span<const Index> part_entries, Span<const std::int32_t> token,
               Span<const float> pre, Span<const float> value, Index rows, Index tokens,
               ActiveSet& out) override;

    // ---- decode and residual (decode_host.cpp, residual_host.cpp)
    void decode(const ActiveSet& active, std::span<const Matrix<const float>> decoder,
                Matrix<float> out) override;
    void residual(Matrix<float> partial, Matrix<const float> target, Span<const float> bias,
                  Span<const float> scale, Index batch_tokens, Index layers, Matrix<float> gradient,
                  Span<double> squared_error) override;
    void accumulate(Matrix<const float> error, Matrix<const float> target,
                    ColumnSums& sums) override;
    void column_sums(Matrix<const float> m, Span<float> out) override;

    // ---- backward (rows_host.cpp, activation_host.cpp)
    void row_norms(Matrix<const float> m, Span<float> norms) override;
    void sparsity_penalty(float weight, float c, Span<const float> norms, ActiveSet& active,
                          Span<float> coefficient, Span<double> sum) override;
    void decoder_rows(ActiveSet& active, Index layer, Index features, Matrix<const float> gradient,
                      Span<const float> coefficient, bool activations, const AdamStep* adam,
                      ParamRows rows, Span<double> squares) override;
    void activation_gradient(const CollectRule& rule, Span<const float> log_threshold,
                             float bandwidth, ActiveSet& active, Span<float> bias_gradient,
                             Span<float> threshold_gradient) override;
    void encoder_rows(const ActiveSet& active, Index layer, Index features, Matrix<const float> x,
                      const AdamStep* adam, ParamRows rows, Span<double> squares) override;

    // ---- dense activations (dense_activation_host.cpp)
    void activate(const CollectRule& rule, Span<const float> log_threshold, Matrix<const float> pre,
                  Matrix<float> value, Span<Index> active, Span<Index> fired) override;
    void count_kept(const CollectRule& rule, Span<const float> log_threshold,
                    Matrix<const float> pre, Span<Index> count) override;
    void sparsity_penalty_dense(float weight, float c, Span<const float> norms,
                                Matrix<const float> value, Matrix<float> gradient,
                                Span<float> coefficient, Span<double> sum) override;
    void activation_gradient_dense(const CollectRule& rule, Span<const float> log_threshold,
                                   float bandwidth, Matrix<const float> pre, Matrix<float> gradient,
                                   Span<float> bias_gradient,
                                   Span<float> threshold_gradient) override;
    void preactivation_gradient(float weight, Matrix<const float> pre, Matrix<float> gradient,
                                Span<float> bias_gradient) override;
    void scatter_gradient(const ActiveSet& active, Index first_row,
                          Matrix<float> gradient) override;
    void add_scaled_rows(Span<const float> coefficient, Matrix<const float> value,
                         Matrix<float> g) override;
    void squared_norm(Matrix<const float> m, Span<double> sum) override;
    void adam(const AdamStep& step, Matrix<const float> g, ParamRows params) override;

    // ---- counters (counters_host.cpp)
    void count(const ActiveSet& active, Span<Index> active_tokens,
               Span<Index> fired_tokens) override;
    void sum_parts(Span<const Index> counts, Span<Index> totals) override;
    void age(Span<const Index> fired_tokens, Span<Index> silence) override;

    // ---- language model (transformer_host.cpp)
    void embed(Span<const std::int32_t> ids, std::span<const Index> starts,
               Matrix<const float> token_rows, Matrix<const float> position_rows,
               Matrix<float> x) override;
    void layer_norm(Matrix<const float> x, Span<const float> gain, Span<const float> bias,
                    float epsilon, Matrix<float> y) override;
    void add_bias(Span<const float> bias, Matrix<float> m) override;
    void bias_activation(Span<const float> bias, MlpActivation activation,
                         Matrix<float> m) override;
    void add(Matrix<const float> from, Matrix<float> to) override;
    void copy_matrix(Matrix<const float> from, Matrix<float> to) override;
    void attention(Matrix<const float> qkv, std::span<const Index> starts, Index heads,
                   Matrix<float> out) override;
    void predict(Matrix<const float> logits, Span<const std::int32_t> targets,
                 Span<float> logsumexp, Span<float> loss, Span<std::int32_t> argmax) override;

  private:
    StreamHandle stream() const { return device_.stream(); }
    /// Device scratch of one call; the calls after it in the stream may reuse it.
    template <class T>
    T* scratch(Index n) {
        return static_cast<T*>(device_.scratch(static_cast<std::size_t>(n) * sizeof(T)));
    }
    /// A second scratch, for a call that needs two.
    template <class T>
    T* scratch2(Index n) {
        return static_cast<T*>(device_.scratch2(static_cast<std::size_t>(n) * sizeof(T)));
    }

    cuda::Device device_;  // outlives the buffers below
    cuda::Precision precision_;
    Index ranks_on_device_;
    bool warned_of_pins_ = false;
    Candidates kept_;  // keep() writes here, then swaps
};

}  // namespace clt
