// The language model's kernels. Rows (tokens), or blocks of queries, are the units of parallel
// work; the order of every sum depends on the shapes alone.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/cpu/simd.hpp"
#include "backend/cpu/vector_math.hpp"

namespace clt {
namespace {

using cpu::lanes;
using cpu::Vec;

constexpr Index row_tile = 4;
constexpr Index query_block = 32;
constexpr Index key_block = 64;

Index padded(Index n) {
    return (n + lanes - 1) / lanes * lanes;
}

// c[4, 16 W] += a[4, k] b[k, 16 W], all accumulators in registers.
template <int W>
void multiply_tile(Index k, const float* a, Index lda, const float* b, Index ldb, float* c,
                   Index ldc) {
    Vec sum[row_tile][W];
    for (Index i = 0; i < row_tile; ++i)
        for (int w = 0; w < W; ++w) sum[i][w] = cpu::load(c + i * ldc + w * lanes);
    for (Index j = 0; j < k; ++j) {
        Vec row[W];
        for (int w = 0; w < W; ++w) row[w] = cpu::load(b + j * ldb + w * lanes);
        for (Index i = 0; i < row_tile; ++i)
            for (int w = 0; w < W; ++w) sum[i][w] += a[i * lda + j] * row[w];
    }
    for (Index i = 0; i < row_tile; ++i)
        for (int w = 0; w < W; ++w) cpu::store(c + i * ldc + w * lanes, sum[i][w]);
}

// c[rows, cols] += a[rows, k] b[k, cols]; rows a multiple of 4, cols of 16.
void multiply(Index rows, Index cols, Index k, const float* a, Index lda, const float* b, Index ldb,
              float* c, Index ldc) {
    for (Index i = 0; i < rows; i += row_tile) {
        Index j = 0;
        for (; j + 4 * lanes <= cols; j += 4 * lanes)
            multiply_tile<4>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
        for (; j + 2 * lanes <= cols; j += 2 * lanes)
            multiply_tile<2>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
        for (; j < cols; j += lanes)
            multiply_tile<1>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
    }
}

float max_of(const float* values, Index n) {
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (Index i = 0; i < n; ++i) largest = std::max(largest, values[i]);
    return largest;
}

// values = e^(values - shift); returns their sum.
float exponentials(float* values, Index n, float shift) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < n; ++i) {
        values[i] = exp_bounded(values[i] - shift);
        sum += values[i];
    }
    return sum;
}

// One head of one block of queries against all keys before them, block by block: the running
// maximum and sum are corrected as larger scores appear, so no row of scores is ever stored whole.
// Source: Milakov & Gimelshein 2018, algorithm 3; Dao et al. 2022, algorithm 1.
class AttentionBlock {
  public:
    explicit AttentionBlock(Index head_width)
        : h_(head_width),
          wide_(padded(head_width)),
          queries_(static_cast<std::size_t>(query_block * h_)),
          keys_(static_cast<std::size_t>(h_ * key_block)),
          values_(static_cast<std::size_t>(key_block * wide_)),
          scores_(static_cast<std::size_t>(query_block * key_block)),
          out_(static_cast<std::size_t>(query_block * wide_)) {}

    // q, k, v: this head's columns of the sequence's first token, rows `stride` apart.
    // Queries [first, first + count) of the sequence; results to out, rows out_stride apart.
    void run(const float* q, const float* k, const float* v, Index stride, Index first, Index count,
             float* out, Index out_stride) {
        load_queries(q + first * stride, stride, count);
        std::fill(out_.begin(), out_.end(), 0.0F);
        std::fill(largest_, largest_ + query_block, -std::numeric_limits<float>::infinity());
        std::fill(sum_, sum_ + query_block, 0.0F);
        const Index end = first + count;
        for (Index key = 0; key < end; key += key_block) {
            const Index keys = std::min(key_block, end - key);
            load_keys(k + key * stride, v + key * stride, stride, keys);
            std::fill(scores_.begin(), scores_.end(), 0.0F);
            multiply(query_block, key_block, h_, queries_.data(), h_, keys_.data(), key_block,
                     scores_.data(), key_block);
            for (Index i = 0; i < query_block; ++i)
                weigh(i, i < count ? std::clamp<Index>(first + i + 1 - key, 0, keys) : 0);
            multiply(query_block, wide_, keys, scores_.data(), key_block, values_.data(), wide_,
                     out_.data(), wide_);
        }
        for (Index i = 0; i < count; ++i)
            for (Index c = 0; c < h_; ++c)
                out[i * out_stride + c] = out_[static_cast<std::size_t>(i * wide_ + c)] / sum_[i];
    }

  private:
    void load_queries(const float* q, Index stride, Index count) {
        const float scale = 1.0F / std::sqrt(static_cast<float>(h_));
        std::fill(queries_.begin(), queries_.end(), 0.0F);
        for (Index i = 0; i < count; ++i)
            for (Index c = 0; c < h_; ++c)
                queries_[static_cast<std::size_t>(i * h_ + c)] = q[i * stride + c] * scale;
    }
    // Keys transposed [h, keys] and values [keys, h padded], so that both products run along rows.
    void load_keys(const float* k, const float* v, Index stride, Index keys) {
        for (Index j = 0; j < keys; ++j) {
            for (Index c = 0; c < h_; ++c)
                keys_[static_cast<std::size_t>(c * key_block + j)] = k[j * stride + c];
            std::copy_n(v + j * stride, h_, values_.data() + j * wide_);
        }
    }
    // Scores of query i become weights: the first `seen` keys count, the others get 0.
    void weigh(Index i, Index seen) {
        float* const row = scores_.data() + i * key_block;
        std::fill(row + seen, row + key_block, 0.0F);
        if (seen == 0) return;
        const float largest = std::max(largest_[i], max_of(row, seen));
        const float correction = exp_bounded(largest_[i] - largest);
        sum_[i] = sum_[i] * correction + exponentials(row, seen, largest);
        largest_[i] = largest;
        float* const out = out_.data() + i * wide_;
        for (Index c = 0; c < wide_; ++c) out[c] *= correction;
    }

    Index h_;
    Index wide_;
    std::vector<float> queries_, keys_, values_, scores_, out_;
    float largest_[query_block] = {};
    float sum_[query_block] = {};
};

}  // namespace

void CpuBackend::embed(Span<const std::int32_t> ids, std::span<const Index> starts,
                       Matrix<const float> token_rows, Matrix<const float> position_rows,
                       Matrix<float> x) {
    const std::int32_t* const id = raw(ids);
    const float* const tokens = raw(token_rows);
    const float* const positions = raw(position_rows);
    float* const out = raw(x);
    for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
        CLT_CHECK(starts[s + 1] <= x.rows && starts[s + 1] - starts[s] <= position_rows.rows);
#pragma omp parallel for schedule(static)
        for (Index t = starts[s]; t < starts[s + 1]; ++t) {
            const float* const a = tokens + id[t] * token_rows.stride;
            const float* const b = positions + (t - starts[s]) * position_rows.stride;
            float* const row = out + t * x.stride;
            for (Index c = 0; c < x.cols; ++c) row[c] = a[c] + b[c];
        }
    }
}

void CpuBackend::layer_norm(Matrix<const float> x, Span<const float> gain, Span<const float> bias,
                            float epsilon, Matrix<float> y) {
    const float* const in = raw(x);
    const float* const g = raw(gain);
    const float* const b = raw(bias);
    float* const out = raw(y);
    const Index d = x.cols;
    CLT_CHECK(y.rows == x.rows && y.cols == d && gain.size() == d && bias.size() == d);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < x.rows; ++t) {
        const float* const row = in + t * x.stride;
        float* const result = out + t * y.stride;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Index c = 0; c < d; ++c) sum += row[c];
        const float mean = sum / static_cast<float>(d);
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (Index c = 0; c < d; ++c) squares += (row[c] - mean) * (row[c] - mean);
        const float scale = 1.0F / std::sqrt(squares / static_cast<float>(d) + epsilon);
#pragma omp simd
        for (Index c = 0; c < d; ++c) result[c] = (row[c] - mean) * scale * g[c] + b[c];
    }
}

void CpuBackend::add_bias(Span<const float> bias, Matrix<float> m) {
    const float* const b = raw(bias);
    float* const values = raw(m);
    CLT_CHECK(bias.size() == m.cols);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < m.rows; ++t)
        for (Index c = 0; c < m.cols; ++c) values[t * m.stride + c] += b[c];
}

void CpuBackend::bias_activation(Span<const float> bias, MlpActivation activation,
                                 Matrix<float> m) {
    const float* const b = raw(bias);
    float* const values = raw(m);
    CLT_CHECK(bias.size() == m.cols);
    const auto apply = [&](auto&& function) {
#pragma omp parallel for schedule(static)
        for (Index t = 0; t < m.rows; ++t) {
            float* const row = values + t * m.stride;
#pragma omp simd
            for (Index c = 0; c < m.cols; ++c) row[c] = function(row[c] + b[c]);
        }
    };
    switch (activation) {
        case MlpActivation::gelu_tanh:
            return apply([](float x) { return gelu_tanh(x); });
        case MlpActivation::gelu_erf:
            return apply([](float x) { return 0.5F * x * (1.0F + std::erf(x * 0.707106781F)); });
        case MlpActivation::relu:
            return apply([](float x) { return x < 0 ? 0.0F : x; });
    }
}

void CpuBackend::add(Matrix<const float> from, Matrix<float> to) {
    const float* const in = raw(from);
    float* const out = raw(to);
    CLT_CHECK(from.rows == to.rows && from.cols == to.cols);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < to.rows; ++t)
        for (Index c = 0; c < to.cols; ++c) out[t * to.stride + c] += in[t * from.stride + c];
}

void CpuBackend::copy_matrix(Matrix<const float> from, Matrix<float> to) {
    const float* const in = raw(from);
    float* const out = raw(to);
    CLT_CHECK(from.rows == to.rows && from.cols == to.cols);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < to.rows; ++t)
        std::copy_n(in + t * from.stride, to.cols, out + t * to.stride);
}

void CpuBackend::attention(Matrix<const float> qkv, std::span<const Index> starts, Index heads,
                           Matrix<float> out) {
    const Index d = out.cols;
    CLT_CHECK(heads > 0 && d % heads == 0 && qkv.cols == 3 * d && qkv.rows == out.rows);
    const Index h = d / heads;
    struct Task {
        Index start = 0;  // the sequence's first token
        Index first = 0;  // the block's first query within the sequence
        Index count = 0;
    };
    std::vector<Task> tasks;
    for (std::size_t s = 0; s + 1 < starts.size(); ++s)
        for (Index first = 0; first < starts[s + 1] - starts[s]; first += query_block)
            tasks.push_back(
                {starts[s], first, std::min(query_block, starts[s + 1] - starts[s] - first)});
    const float* const in = raw(qkv);
    float* const results = raw(out);
    const auto blocks = static_cast<Index>(tasks.size());
#pragma omp parallel
    {
        AttentionBlock block(h);
#pragma omp for schedule(dynamic, 4)
        for (Index i = 0; i < blocks * heads; ++i) {
            const Task& task = tasks[static_cast<std::size_t>(i / heads)];
            const Index column = i % heads * h;
            const float* const q = in + task.start * qkv.stride + column;
            block.run(q, q + d, q + 2 * d, qkv.stride, task.first, task.count,
                      results + (task.start + task.first) * out.stride + column, out.stride);
        }
    }
}

void CpuBackend::predict(Matrix<const float> logits, Span<const std::int32_t> targets,
                         Span<float> logsumexp, Span<float> loss, Span<std::int32_t> argmax) {
    const float* const values = raw(logits);
    const std::int32_t* const target = raw(targets);
    float* const sums = raw(logsumexp);
    float* const losses = raw(loss);
    std::int32_t* const places = raw(argmax);
    CLT_CHECK(logits.cols > 0 && targets.size() == logits.rows);
#pragma omp parallel for schedule(static)
    for (Index t = 0; t < logits.rows; ++t) {
        const float* const row = values + t * logits.stride;
        const float* const largest = std::max_element(row, row + logits.cols);
        // In double: a vocabulary has 50,000 terms and more.
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Index v = 0; v < logits.cols; ++v)
            sum += static_cast<double>(exp_bounded(row[v] - *largest));
        sums[t] = *largest + static_cast<float>(std::log(sum));
        losses[t] = target[t] < 0 ? 0.0F : sums[t] - row[target[t]];
        places[t] = static_cast<std::int32_t>(largest - row);
    }
}

}  // namespace clt
