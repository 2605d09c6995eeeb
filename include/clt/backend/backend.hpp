// The one page that lists every kernel. One call does a million FLOP or more, so a virtual call
// costs nothing, and pure virtuals keep every backend complete. Letters: B tokens given to the
// call, L layers, d width, F_p local features a layer, T features of a tile. Matrices are row-major
// in the backend's memory. Nothing here is collective; kernels are deterministic: sums run in a
// fixed order. A NaN is never selected and always shows in the losses. Work is queued in order: a
// call may return before it is done, and only download(), found() and synchronize() wait. So sums
// are left in backend memory, and the host reads them once.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "clt/backend/active_set.hpp"
#include "clt/backend/adam.hpp"
#include "clt/backend/plain.hpp"
#include "clt/base/float16.hpp"
#include "clt/comm/collectives.hpp"
#include "clt/memory/memory.hpp"

namespace clt {

/// A parameter with its Adam moments; all three the same shape. What writes them sets not_finite[1]
/// to 1 when one of the numbers it wrote is not finite (see adam_update); empty: nobody asks.
struct ParamRows {
    Matrix<float> value;
    Matrix<float> moment1;
    Matrix<float> moment2;
    Matrix<Bfloat16> rounded = {};  // value in bfloat16, updated with it; empty where none is kept
    Span<double> not_finite = {};
};

/// A factor of the encoder's product. `rounded` holds the same numbers where the backend multiplies
/// in bfloat16 (rounds_encoder()), else it is empty.
struct EncoderOperand {
    Matrix<const float> value;
    Matrix<const Bfloat16> rounded;

    EncoderOperand(Matrix<const float> exact) : value(exact) {}
    EncoderOperand(Matrix<float> exact) : value(exact) {}
    EncoderOperand(Matrix<const float> exact, Matrix<const Bfloat16> in_bfloat16)
        : value(exact), rounded(in_bfloat16) {}
    EncoderOperand(const ParamRows& rows) : value(rows.value), rounded(rows.rounded) {}
};

/// Times the stages of queued work on the clock of the backend.
class StageClock {
  public:
    virtual ~StageClock() = default;
    /// The time until the next mark belongs to no stage.
    virtual void start() = 0;
    /// The work queued since the last mark belongs to `stage`.
    virtual void mark(const std::string& stage) = 0;
    /// Seconds of each stage since the last call, in order of first appearance. Waits for the work.
    virtual std::vector<std::pair<std::string, double>> take() = 0;
};

/// Radix select in progress: groups = 1 (batchtopk) or B (topk: every token by itself).
struct Cut {
    Index groups = 0;
    Buffer<std::uint64_t> score;     // [groups] ordered_key of the last entry kept, in low 32 bits
    Buffer<std::uint64_t> position;  // [groups] largest position kept among keys equal to score
    Buffer<Index> remaining;         // [groups] how many of the entries equal to score are kept
};

/// Sums over the tokens of one evaluation or batch, in normalised units: [L, d] each.
struct ColumnSums {
    Buffer<double> target;          // sum y
    Buffer<double> target_squared;  // sum y^2
    Buffer<double> error;           // sum (yhat - y)
    Buffer<double> error_squared;   // sum (yhat - y)^2
};

class Backend {
  public:
    virtual ~Backend() = default;

    virtual std::string name() const = 0;
    virtual MemoryResource& memory() = 0;
    /// Bytes of memory of its own, a GPU's, that are free for this rank; absent where memory() is
    /// the host's.
    virtual std::optional<Index> free_bytes() const = 0;
    /// Bulk collectives over `communicator` on this backend's memory. Collective.
    virtual std::unique_ptr<Collectives> collectives(const Communicator& communicator) = 0;
    /// What collectives() takes of that memory for a communicator of several ranks.
    virtual Index communicator_bytes() const = 0;
    virtual std::unique_ptr<StageClock> stage_clock() = 0;
    /// Waits until all work given so far is done.
    virtual void synchronize() = 0;
    /// Whether encode() reads the rounded factors.
    virtual bool rounds_encoder() const = 0;
    /// The tile (T) of features the encoder should use for B tokens of width d.
    virtual Index encode_tile(Index tokens, Index d_model) const = 0;

    // ---- moving data -------------------------------------------------------------------------
    /// The host memory may be reused at once.
    virtual void upload_bytes(const void* host, void* device, std::size_t bytes) = 0;
    /// Copies beside the work given so far, which must not touch `device`; work given later sees
    /// the copy. The host memory must stay as it is until a download() of later work.
    virtual void upload_ahead_bytes(const void* host, void* device, std::size_t bytes) = 0;
    /// Whether upload_ahead() overlaps with work, so that a second set of batch buffers pays.
    virtual bool uploads_ahead() const = 0;
    /// Makes uploads from this host memory fast while the result lives.
    virtual std::shared_ptr<const void> pin(const void* host, std::size_t bytes) = 0;
    virtual void download_bytes(const void* device, void* host, std::size_t bytes) = 0;
    virtual void copy_bytes(const void* from, void* to, std::size_t bytes) = 0;
    virtual void zero_bytes(void* device, std::size_t bytes) = 0;

    template <class T>
    void upload(std::span<const T> host, Span<T> device);
    template <class T>
    void upload_ahead(std::span<const T> host, Span<T> device);
    template <class T>
    void download(Span<const T> device, std::span<T> host);
    template <class T>
    T download_one(Span<const T> device);
    /// Entries found so far; more than candidates.capacity() when some did not fit.
    Index found(const Candidates& candidates) { return download_one(candidates.size.span()); }
    /// No entries, and room for at least `capacity`.
    void reset(Candidates& candidates, Index capacity, bool ranked);
    template <class T>
    void copy(Span<const T> from, Span<T> to);
    template <class T>
    void zero(Span<T> span);

    // ---- dense products ----------------------------------------------------------------------
    /// C = alpha * op(A) op(B) + beta * C, op = transpose where the flag says so.
    virtual void gemm(bool transpose_a, bool transpose_b, float alpha, Matrix<const float> a,
                      Matrix<const float> b, float beta, Matrix<float> c) = 0;

    // ---- encode and select -------------------------------------------------------------------
    /// to = from, rounded to nearest even.
    virtual void round(Matrix<const float> from, Matrix<Bfloat16> to) = 0;
    /// pre[T, B] = weight[T, d] * x[B, d]^T + bias[T]; a row of pre is a feature.
    virtual void encode(const EncoderOperand& x, const EncoderOperand& weight,
                        Span<const float> bias, Matrix<float> pre) = 0;
    /// sums[T, 2] = sum over the B tokens of p and p^2, in double.
    virtual void tile_sums(Matrix<const float> pre, Span<double> sums) = 0;
    /// sum[1] += relu(-p) over all entries.
    virtual void negative_sum(Matrix<const float> pre, Span<double> sum) = 0;
    /// Appends this tile's candidates, ascending by (row, token), and counts those that do not fit.
    /// first_row: row of the tile's first feature.  sums [T, 2] and sum_tokens: for zscore (ddof
    /// 1). bound [1] or [B]: topk kinds keep entries with score >= bound (and p > 0 unless
    /// keep_negative).  log_threshold [T]: jumprelu keeps p >= exp(log_threshold) and the window;
    /// relu keeps p > 0.
    virtual void collect(const CollectRule& rule, Matrix<const float> pre, Index first_row,
                         Span<const double> sums, Index sum_tokens, Span<const float> bound,
                         Span<const float> log_threshold, Candidates& out) = 0;

    /// counts[groups, 2^bits]: for each candidate whose key agrees with cut.score above
    /// shift + bits, its digit (key >> shift) & (2^bits - 1) is counted in its group.
    virtual void count_digits(const Candidates& candidates, const Cut& cut, int shift, int bits,
                              Span<Index> counts) = 0;
    /// The same on positions, of candidates whose key equals cut.score.
    virtual void count_position_digits(const Candidates& candidates, const PositionMap& map,
                                       const Cut& cut, int shift, int bits, Span<Index> counts) = 0;
    /// From the top: the digit in which the remaining-th largest key lies is written into
    /// cut.score, and remaining falls by what lies above it. A group with fewer entries than
    /// remaining gets digit 0. positions: smallest first, into cut.position (too few: the largest
    /// digit), so that such a group keeps everything.
    virtual void choose_digit(Span<const Index> counts, int shift, int bits, bool positions,
                              Cut& cut) = 0;
    /// Drops the candidates beyond the cut: keeps key > score, and key == score with
    /// position <= cut.position. Order and capacity stay.
    virtual void keep(const PositionMap& map, const Cut& cut, Candidates& candidates) = 0;
    /// bound[g] = max(bound[g], value of cut.score[g]).
    virtual void raise_bound(const Cut& cut, Span<float> bound) = 0;

    /// Candidates, all of which fit, become the active set of `rows` rows (all its buffers are
    /// sized, gradient too) and `tokens` tokens; values by the rule:
    /// topk kinds and relu a = p; jumprelu a = p where p >= exp(log_threshold[row]), else 0.
    /// Gradients start at 0, here and in merge().
    virtual void index(const CollectRule& rule, Span<const float> log_threshold, Index rows,
                       Index tokens, const Candidates& candidates, ActiveSet& out) = 0;
    /// Active sets of the same rows and other tokens, side by side in token order, become one.
    /// row_starts[parts, rows + 1]: each part's own; token_starts[parts]: its first token;
    /// part_entries[parts]: how many it has; token, pre, value: the parts' entries one part after
    /// the other.
    virtual void merge(Span<const Index> row_starts, std::span<const Index> token_starts,
                       std::span<const Index> part_entries, Span<const std::int32_t> token,
                       Span<const float> pre, Span<const float> value, Index rows, Index tokens,
                       ActiveSet& out) = 0;

    // ---- decode ------------------------------------------------------------------------------
    /// out[B, L*d] = sum over active (row, token) of value * decoder row, written from layer's own
    /// target on. decoder[l] is [F_p, (L-l)*d].
    virtual void decode(const ActiveSet& active, std::span<const Matrix<const float>> decoder,
                        Matrix<float> out) = 0;
    /// Residual and its gradient of S tokens. yhat = partial + bias; e = yhat - target (left in
    /// `partial`); gradient = 2 * scale^2 * e / (batch_tokens * d); squared_error[L] = sum over the
    /// S tokens and d of (scale * e)^2.  bias, scale: [L*d].
    virtual void residual(Matrix<float> partial, Matrix<const float> target, Span<const float> bias,
                          Span<const float> scale, Index batch_tokens, Index layers,
                          Matrix<float> gradient, Span<double> squared_error) = 0;
    /// Adds S tokens' targets and errors (as residual() leaves them) to the sums.
    virtual void accumulate(Matrix<const float> error, Matrix<const float> target,
                            ColumnSums& sums) = 0;
    /// out[cols] = sum over rows.
    virtual void column_sums(Matrix<const float> m, Span<float> out) = 0;

    // ---- backward ----------------------------------------------------------------------------
    /// norms[F_p] = L2 norm of each row.
    virtual void row_norms(Matrix<const float> m, Span<float> norms) = 0;
    /// Tanh penalty: sum[1] += weight * sum over entries tanh(c * norm[row] * value). Adds its
    /// gradient to active.gradient and writes the decoder row's factor: dL/drow = coefficient *
    /// row. A row of norm 0 contributes nothing.
    virtual void sparsity_penalty(float weight, float c, Span<const float> norms, ActiveSet& active,
                                  Span<float> coefficient, Span<double> sum) = 0;
    /// Decoder rows of one layer, fused with their update. G = gradient[B, L*d]: the layer's rows
    /// see columns [layer*d, L*d); coefficient [F_p], this layer's.  active.gradient[e] +=
    /// <G[token], row> when `activations`. Row gradient g = sum value * G[token] + coefficient *
    /// row (coefficient may be empty). adam == nullptr: nothing is updated and squares[1] += sum of
    /// g^2; else squares may be empty.
    virtual void decoder_rows(ActiveSet& active, Index layer, Index features,
                              Matrix<const float> gradient, Span<const float> coefficient,
                              bool activations, const AdamStep* adam, ParamRows rows,
                              Span<double> squares) = 0;
    /// dL/dvalue becomes dL/dpre in active.gradient; bias_gradient[rows] = sum of dL/dpre over a
    /// row; jumprelu: threshold_gradient[rows] = dL/dlog_threshold = theta * sum over the window of
    /// dL/dvalue * (-p / bandwidth).
    virtual void activation_gradient(const CollectRule& rule, Span<const float> log_threshold,
                                     float bandwidth, ActiveSet& active, Span<float> bias_gradient,
                                     Span<float> threshold_gradient) = 0;
    /// Encoder rows of one layer, fused with their update: g = sum dL/dpre * x[token].
    /// adam == nullptr: squares[1] += sum of g^2.  x: [B, d].
    virtual void encoder_rows(const ActiveSet& active, Index layer, Index features,
                              Matrix<const float> x, const AdamStep* adam, ParamRows rows,
                              Span<double> squares) = 0;

    // ---- dense activations (relu, jumprelu) and dense encoder gradients, tile by tile --------
    /// value[T, B] from pre[T, B]; active[T] and fired[T] (a > 1e-6) += tokens of each feature;
    /// both may be empty.
    virtual void activate(const CollectRule& rule, Span<const float> log_threshold,
                          Matrix<const float> pre, Matrix<float> value, Span<Index> active,
                          Span<Index> fired) = 0;
    /// count[1] += entries that collect() would keep (relu, jumprelu), without keeping them.
    virtual void count_kept(const CollectRule& rule, Span<const float> log_threshold,
                            Matrix<const float> pre, Span<Index> count) = 0;
    /// The tanh penalty of a dense tile; as sparsity_penalty, gradient[T, B] is added to.
    virtual void sparsity_penalty_dense(float weight, float c, Span<const float> norms,
                                        Matrix<const float> value, Matrix<float> gradient,
                                        Span<float> coefficient, Span<double> sum) = 0;
    /// gradient[T, B]: dL/dvalue becomes dL/dpre; as activation_gradient, all spans [T], written
    /// over.
    virtual void activation_gradient_dense(const CollectRule& rule, Span<const float> log_threshold,
                                           float bandwidth, Matrix<const float> pre,
                                           Matrix<float> gradient, Span<float> bias_gradient,
                                           Span<float> threshold_gradient) = 0;
    /// gradient[T, B] -= weight where pre < 0; bias_gradient[T], which may be empty, -= weight *
    /// that count (d of weight * sum relu(-p)).
    virtual void preactivation_gradient(float weight, Matrix<const float> pre,
                                        Matrix<float> gradient, Span<float> bias_gradient) = 0;
    /// gradient[T, B] = dL/dpre of the active entries of rows [first_row, first_row + T), else 0.
    virtual void scatter_gradient(const ActiveSet& active, Index first_row,
                                  Matrix<float> gradient) = 0;
    /// g += coefficient[row] * value row.
    virtual void add_scaled_rows(Span<const float> coefficient, Matrix<const float> value,
                                 Matrix<float> g) = 0;
    /// sum[1] += sum of squares.
    virtual void squared_norm(Matrix<const float> m, Span<double> sum) = 0;
    /// One Adam step with gradient g, same shape.
    virtual void adam(const AdamStep& step, Matrix<const float> g, ParamRows params) = 0;

    // ---- counters ----------------------------------------------------------------------------
    /// active[rows] += entries with value != 0, fired[rows] += entries with value > 1e-6.
    virtual void count(const ActiveSet& active, Span<Index> active_tokens,
                       Span<Index> fired_tokens) = 0;
    /// totals[g] = sum of the g-th of totals.size() equal parts of counts.
    virtual void sum_parts(Span<const Index> counts, Span<Index> totals) = 0;
    /// silence[row] = fired_tokens[row] > 0 ? 0 : silence[row] + 1.
    virtual void age(Span<const Index> fired_tokens, Span<Index> silence) = 0;

    // ---- language model ----------------------------------------------------------------------
    // T tokens of S sequences, one after the other without padding: sequence s holds the tokens
    // [starts[s], starts[s + 1]); starts has S + 1 entries.
    /// x[T, d] = token_rows[id] + position_rows[place in its sequence].
    virtual void embed(Span<const std::int32_t> ids, std::span<const Index> starts,
                       Matrix<const float> token_rows, Matrix<const float> position_rows,
                       Matrix<float> x) = 0;
    /// y = (x - mean) / sqrt(variance + epsilon) * gain + bias, row by row. [T, d]; y may be x.
    virtual void layer_norm(Matrix<const float> x, Span<const float> gain, Span<const float> bias,
                            float epsilon, Matrix<float> y) = 0;
    /// Every row of m += bias.
    virtual void add_bias(Span<const float> bias, Matrix<float> m) = 0;
    /// m = act(m + bias), element by element.
    virtual void bias_activation(Span<const float> bias, MlpActivation activation,
                                 Matrix<float> m) = 0;
    /// to += from.
    virtual void add(Matrix<const float> from, Matrix<float> to) = 0;
    /// to = from; the strides may differ.
    virtual void copy_matrix(Matrix<const float> from, Matrix<float> to) = 0;
    /// Causal softmax attention within each sequence; qkv[T, 3 * heads * h]: queries, keys, values,
    /// each head by head; out[T, heads * h]. Scores are scaled by 1 / sqrt(h).
    virtual void attention(Matrix<const float> qkv, std::span<const Index> starts, Index heads,
                           Matrix<float> out) = 0;
    /// Of each row of logits[T, V]: log of the sum of e^logit, the place of the largest logit (the
    /// first of equals) and loss = logsumexp - logit[target]; target -1: loss 0.
    virtual void predict(Matrix<const float> logits, Span<const std::int32_t> targets,
                         Span<float> logsumexp, Span<float> loss, Span<std::int32_t> argmax) = 0;
};

/// kind: "cpu" or "cuda". precision of the encoder's product: "float32", "tf32", "bfloat16" or
/// "auto" (bfloat16 on cuda, else float32). Throws UserError when that backend is not compiled in,
/// has no device or does not have that precision. Collective over `world`: ranks of a host share
/// its devices.
std::unique_ptr<Backend> make_backend(const std::string& kind, const Communicator& world,
                                      const std::string& precision = "auto");

template <class T>
void Backend::upload(std::span<const T> host, Span<T> device) {
    CLT_CHECK(static_cast<Index>(host.size()) == device.size());
    upload_bytes(host.data(), RawAccess::pointer(device), host.size_bytes());
}
template <class T>
void Backend::upload_ahead(std::span<const T> host, Span<T> device) {
    CLT_CHECK(static_cast<Index>(host.size()) == device.size());
    upload_ahead_bytes(host.data(), RawAccess::pointer(device), host.size_bytes());
}
template <class T>
void Backend::download(Span<const T> device, std::span<T> host) {
    CLT_CHECK(static_cast<Index>(host.size()) == device.size());
    download_bytes(RawAccess::pointer(device), host.data(), host.size_bytes());
}
template <class T>
T Backend::download_one(Span<const T> device) {
    T value{};
    download(device, std::span<T>(&value, 1));
    return value;
}
inline void Backend::reset(Candidates& candidates, Index capacity, bool ranked) {
    candidates.size.reserve_discarding(memory(), 1, Purpose::candidates);
    candidates.row.reserve_discarding(memory(), capacity, Purpose::candidates);
    candidates.token.reserve_discarding(memory(), capacity, Purpose::candidates);
    candidates.pre.reserve_discarding(memory(), capacity, Purpose::candidates);
    if (ranked) candidates.key.reserve_discarding(memory(), capacity, Purpose::candidates);
    zero(candidates.size.span());
}
template <class T>
void Backend::copy(Span<const T> from, Span<T> to) {
    CLT_CHECK(from.size() == to.size());
    copy_bytes(RawAccess::pointer(from), RawAccess::pointer(to),
               static_cast<std::size_t>(from.size()) * sizeof(T));
}
template <class T>
void Backend::zero(Span<T> span) {
    zero_bytes(RawAccess::pointer(span), static_cast<std::size_t>(span.size()) * sizeof(T));
}

}  // namespace clt
