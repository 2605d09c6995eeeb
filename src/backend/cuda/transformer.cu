// The language model's kernels. The products around them are cuBLAS's; these are bound by memory,
// but for attention.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/transformer.hpp"

#include <cmath>
#include <limits>

#include "backend/cuda/elements.hpp"

namespace clt::cuda {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_lanes;
constexpr float negative_infinity = -std::numeric_limits<float>::infinity();

// ---- element by element -------------------------------------------------------------------------

// The last sequence that starts at or before the token; an empty one is never the last.
__device__ Index sequence_of(Index token, const Index* starts, Index sequences) {
    Index first = 0;
    Index end = sequences;
    while (end - first > 1) {
        const Index middle = (first + end) / 2;
        if (starts[middle] <= token)
            first = middle;
        else
            end = middle;
    }
    return first;
}

struct Embed {
    const std::int32_t* ids;
    const Index* starts;
    Index sequences;
    DeviceMatrix<const float> token_rows, position_rows;
    DeviceMatrix<float> x;

    template <int width>
    __device__ void run(Index token, Index col) const {
        const Index place = token - starts[sequence_of(token, starts, sequences)];
        auto sum = load<width>(token_rows.data + ids[token] * token_rows.stride + col);
        const auto position = load<width>(position_rows.data + place * position_rows.stride + col);
        for (int i = 0; i < width; ++i) sum.lane[i] += position.lane[i];
        store(x.data + token * x.stride + col, sum);
    }
};

struct GeluTanh {
    // 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)). Source: Hendrycks & Gimpel 2016, section 2.
    __device__ float operator()(float x) const {
        const float u = 0.797884561F * (x + 0.044715F * x * x * x);
        return x / (1.0F + std::exp(-2.0F * u));
    }
};
struct GeluErf {
    __device__ float operator()(float x) const {
        return 0.5F * x * (1.0F + std::erf(x * 0.707106781F));
    }
};
struct Relu {
    __device__ float operator()(float x) const { return x < 0 ? 0.0F : x; }
};
struct Identity {
    __device__ float operator()(float x) const { return x; }
};

template <class Function>
struct BiasThen {
    const float* bias;
    DeviceMatrix<float> m;

    template <int width>
    __device__ void run(Index row, Index col) const {
        float* const at = m.data + row * m.stride + col;
        auto x = load<width>(at);
        const auto b = load<width>(bias + col);
        for (int i = 0; i < width; ++i) x.lane[i] = Function()(x.lane[i] + b.lane[i]);
        store(at, x);
    }
};

struct Add {
    DeviceMatrix<const float> from;
    DeviceMatrix<float> to;

    template <int width>
    __device__ void run(Index row, Index col) const {
        const auto x = load<width>(from.data + row * from.stride + col);
        float* const at = to.data + row * to.stride + col;
        auto sum = load<width>(at);
        for (int i = 0; i < width; ++i) sum.lane[i] += x.lane[i];
        store(at, sum);
    }
};

struct Copy {
    DeviceMatrix<const float> from;
    DeviceMatrix<float> to;

    template <int width>
    __device__ void run(Index row, Index col) const {
        store(to.data + row * to.stride + col, load<width>(from.data + row * from.stride + col));
    }
};

template <class Function>
void bias_then(const float* bias, DeviceMatrix<float> m, StreamHandle stream) {
    const DeviceMatrix<const float> bias_row{bias, 1, m.cols, m.cols};
    for_each_element(m.rows, m.cols, divides_into_4(m) && divides_into_4(bias_row),
                     BiasThen<Function>{bias, m}, stream);
}

// ---- layer norm ---------------------------------------------------------------------------------

// A warp takes a row; its second and third walk find the row in the L1. y may be x, as a lane
// writes only what it alone reads.
template <int width>
__global__ void __launch_bounds__(threads)
    layer_norm_of_rows(DeviceMatrix<const float> x, const float* gain, const float* bias,
                       float epsilon, DeviceMatrix<float> y) {
    const Index token = Index{blockIdx.x} * warps + warp_of_thread();
    if (token >= x.rows) return;
    const Index first = Index{lane_of_thread()} * width;
    const Index step = Index{warp_lanes} * width;
    const float* const row = x.data + token * x.stride;
    const auto d = static_cast<float>(x.cols);
    float sum = 0;
#pragma unroll 4
    for (Index col = first; col < x.cols; col += step) {
        const auto in = load<width>(row + col);
        for (int i = 0; i < width; ++i) sum += in.lane[i];
    }
    const float mean = warp_sum(sum) / d;
    float squares = 0;
#pragma unroll 4
    for (Index col = first; col < x.cols; col += step) {
        const auto in = load<width>(row + col);
        for (int i = 0; i < width; ++i) squares += (in.lane[i] - mean) * (in.lane[i] - mean);
    }
    const float scale = 1.0F / std::sqrt(warp_sum(squares) / d + epsilon);
    float* const out = y.data + token * y.stride;
    for (Index col = first; col < x.cols; col += step) {
        auto in = load<width>(row + col);
        const auto g = load<width>(gain + col);
        const auto b = load<width>(bias + col);
        for (int i = 0; i < width; ++i)
            in.lane[i] = (in.lane[i] - mean) * scale * g.lane[i] + b.lane[i];
        store(out + col, in);
    }
}

// ---- attention ----------------------------------------------------------------------------------

constexpr int tile = query_block;  // queries, keys and columns of a tile
constexpr int side = 16;           // threads along an edge of a tile
constexpr int each = tile / side;  // rows and columns of a thread
constexpr int quads = tile / 4;    // of a row
static_assert(side * side == threads);

// A 64 x 64 tile in shared memory. Quads are permuted by the row, so that 8 neighbouring rows lie
// in different banks; padding instead would take three tiles over 48 KB.
class Tile {
  public:
    __device__ explicit Tile(float* elements) : elements_(elements) {}

    __device__ float4* quad(int row, int index) const {
        return reinterpret_cast<float4*>(elements_ + row * tile + ((index ^ (row % side)) * 4));
    }
    __device__ float* element(int row, int col) const {
        return elements_ + row * tile + (((col / 4) ^ (row % side)) * 4) + col % 4;
    }

  private:
    float* elements_;
};

// Columns [col, col + 64) of rows [0, rows) of a head; what lies beyond `cols` or `rows` is 0.
template <bool packed>
__device__ void load_tile(const Tile& to, const float* from, Index stride, Index rows, Index col,
                          Index cols) {
    for (int i = static_cast<int>(threadIdx.x); i < tile * quads; i += threads) {
        const int row = i / quads;
        const Index at = col + i % quads * 4;
        float4 value{0, 0, 0, 0};
        if (row < rows) {
            const float* const source = from + row * stride + at;
            if constexpr (packed) {
                if (at < cols) value = *reinterpret_cast<const float4*>(source);
            } else {
                if (at < cols) value.x = source[0];
                if (at + 1 < cols) value.y = source[1];
                if (at + 2 < cols) value.z = source[2];
                if (at + 3 < cols) value.w = source[3];
            }
        }
        *to.quad(row, i % quads) = value;
    }
}

__device__ inline float dot(float4 a, float4 b, float sum) {
    sum += a.x * b.x;
    sum += a.y * b.y;
    sum += a.z * b.z;
    return sum + a.w * b.w;
}
__device__ inline void add_scaled(float factor, float4 b, float (&sum)[4]) {
    sum[0] += factor * b.x;
    sum[1] += factor * b.y;
    sum[2] += factor * b.z;
    sum[3] += factor * b.w;
}

// Over the 16 threads that share a row of a tile: half a warp.
__device__ inline float largest_of_row(float value) {
    for (int other = side / 2; other > 0; other /= 2)
        value = std::fmax(value, __shfl_xor_sync(all_lanes, value, other));
    return value;
}
__device__ inline float sum_of_row(float value) {
    for (int other = side / 2; other > 0; other /= 2)
        value += __shfl_xor_sync(all_lanes, value, other);
    return value;
}

// A block takes 64 queries of a sequence, a head and 64 columns of its values, and walks over the
// keys in tiles of 64: the running maximum and sum are corrected as larger scores appear, so scores
// never leave the block. A thread holds 4 x 4 scores and 4 x 4 results. In float32 on the CUDA
// cores and by one kernel instead of batched products, which would write and read T * 1024 scores a
// head: of a GPT-2's work on 1024 tokens this is a tenth. A head wider than 64 forms its scores
// again for every 64 columns; the models at hand have 64.
// Source: Milakov & Gimelshein 2018, algorithm 3; Dao et al. 2022, algorithm 1.
template <bool packed>
__global__ void __launch_bounds__(threads, 2)
    attention_of_queries(DeviceMatrix<const float> qkv, const QueryBlock* blocks, Index heads,
                         Index width, Index column_blocks, DeviceMatrix<float> out) {
    CLT_SHARED(float4, query_elements, tile * quads);
    CLT_SHARED(float4, key_elements, tile * quads);  // then the weights
    CLT_SHARED(float4, value_elements, tile * quads);
    const Tile queries(&query_elements[0].x);
    const Tile keys(&key_elements[0].x);
    const Tile& weights = keys;
    const Tile values(&value_elements[0].x);

    const Index head = blockIdx.x / column_blocks % heads;
    const Index out_col = blockIdx.x % column_blocks * tile;  // within the head
    const QueryBlock block = blocks[blockIdx.x / column_blocks / heads];
    const Index d = heads * width;
    const float* const q = qkv.data + (block.start + block.first) * qkv.stride + head * width;
    const float* const k = qkv.data + block.start * qkv.stride + d + head * width;
    const float* const v = k + d;
    const float scale = 1.0F / std::sqrt(static_cast<float>(width));
    const int tx = static_cast<int>(threadIdx.x) % side;
    const int ty = static_cast<int>(threadIdx.x) / side;
    // The thread's queries are ty + 16 i, its keys tx + 16 j, its columns 4 tx + c.
    float result[each][4] = {};
    float largest[each];
    float sum[each] = {};
    for (float& value : largest) value = negative_infinity;

    for (Index key = 0; key < block.first + block.count; key += tile) {
        const Index n = min(Index{tile}, block.first + block.count - key);
        float score[each][each] = {};
        for (Index col = 0; col < width; col += tile) {
            __syncthreads();  // the products before have read the tiles
            if (key == 0 || width > tile)
                load_tile<packed>(queries, q, qkv.stride, block.count, col, width);
            load_tile<packed>(keys, k + key * qkv.stride, qkv.stride, n, col, width);
            if (col == 0)
                load_tile<packed>(values, v + key * qkv.stride, qkv.stride, n, out_col, width);
            __syncthreads();
            const int used = static_cast<int>((min(Index{tile}, width - col) + 3) / 4);
            for (int c = 0; c < used; ++c) {
                float4 a[each];
                float4 b[each];
                for (int i = 0; i < each; ++i) a[i] = *queries.quad(ty + side * i, c);
                for (int j = 0; j < each; ++j) b[j] = *keys.quad(tx + side * j, c);
                for (int i = 0; i < each; ++i)
                    for (int j = 0; j < each; ++j) score[i][j] = dot(a[i], b[j], score[i][j]);
            }
        }
        __syncthreads();  // the weights take the place of the keys
        for (int i = 0; i < each; ++i) {
            const Index query = block.first + ty + side * i;
            float high = largest[i];
            for (int j = 0; j < each; ++j) {
                const bool seen = key + tx + side * j <= query;
                score[i][j] = seen ? score[i][j] * scale : negative_infinity;
                high = std::fmax(high, score[i][j]);
            }
            high = largest_of_row(high);
            float added = 0;
            for (int j = 0; j < each; ++j) {
                const float weight = std::exp(score[i][j] - high);
                *weights.element(ty + side * i, tx + side * j) = weight;
                added += weight;
            }
            const float correction = std::exp(largest[i] - high);
            largest[i] = high;
            sum[i] = sum[i] * correction + sum_of_row(added);
            for (float& value : result[i]) value *= correction;
        }
        __syncthreads();
        const int used = static_cast<int>((n + 3) / 4);
        for (int c = 0; c < used; ++c) {
            float4 b[4];
            for (int j = 0; j < 4; ++j) b[j] = *values.quad(4 * c + j, tx);
            for (int i = 0; i < each; ++i) {
                const float4 a = *weights.quad(ty + side * i, c);
                add_scaled(a.x, b[0], result[i]);
                add_scaled(a.y, b[1], result[i]);
                add_scaled(a.z, b[2], result[i]);
                add_scaled(a.w, b[3], result[i]);
            }
        }
    }
    for (int i = 0; i < each; ++i) {
        const int query = ty + side * i;
        if (query >= block.count) continue;
        float* const row =
            out.data + (block.start + block.first + query) * out.stride + head * width;
        for (int c = 0; c < 4; ++c) {
            const Index col = out_col + 4 * tx + c;
            if (col < width) row[col] = result[i][c] / sum[i];
        }
    }
}

// ---- predictions --------------------------------------------------------------------------------

struct Largest {
    float value = negative_infinity;
    int place = 0;
};
/// The larger one; of equals, the first.
__device__ Largest larger(Largest a, Largest b) {
    return b.value > a.value || (b.value == a.value && b.place < a.place) ? b : a;
}
__device__ Largest largest_of_warp(Largest own) {
    for (int other = warp_lanes / 2; other > 0; other /= 2)
        own = larger(own, {__shfl_xor_sync(all_lanes, own.value, other),
                           __shfl_xor_sync(all_lanes, own.place, other)});
    return own;
}

// A block takes a row and walks it twice: 200 KB of a vocabulary, the second time from the L2.
__global__ void __launch_bounds__(threads)
    predict_rows(DeviceMatrix<const float> logits, const std::int32_t* targets, float* logsumexp,
                 float* loss, std::int32_t* argmax) {
    CLT_SHARED(float, value_of_warp, warps);
    CLT_SHARED(int, place_of_warp, warps);
    const Index token = blockIdx.x;
    const float* const row = logits.data + token * logits.stride;
    const int n = static_cast<int>(logits.cols);
    Largest largest;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < n; i += threads)
        if (row[i] > largest.value) largest = {row[i], i};
    largest = largest_of_warp(largest);
    if (lane_of_thread() == 0) {
        value_of_warp[warp_of_thread()] = largest.value;
        place_of_warp[warp_of_thread()] = largest.place;
    }
    __syncthreads();
    for (int warp = 0; warp < warps; ++warp)
        largest = larger(largest, {value_of_warp[warp], place_of_warp[warp]});
    double sum = 0;  // a vocabulary has 50,000 terms and more
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < n; i += threads)
        sum += static_cast<double>(std::exp(row[i] - largest.value));
    sum = block_sum<threads>(sum);
    if (threadIdx.x != 0) return;
    const float result = largest.value + static_cast<float>(std::log(sum));
    const std::int32_t target = targets[token];
    logsumexp[token] = result;
    loss[token] = target < 0 ? 0.0F : result - row[target];
    argmax[token] = largest.place;
}

}  // namespace

void embed(const std::int32_t* ids, const Index* starts, Index sequences,
           DeviceMatrix<const float> token_rows, DeviceMatrix<const float> position_rows,
           DeviceMatrix<float> x, StreamHandle stream) {
    const bool packed =
        divides_into_4(x) && divides_into_4(token_rows) && divides_into_4(position_rows);
    for_each_element(x.rows, x.cols, packed,
                     Embed{ids, starts, sequences, token_rows, position_rows, x}, stream);
}

void layer_norm(DeviceMatrix<const float> x, const float* gain, const float* bias, float epsilon,
                DeviceMatrix<float> y, StreamHandle stream) {
    const DeviceMatrix<const float> gain_row{gain, 1, x.cols, x.cols};
    const DeviceMatrix<const float> bias_row{bias, 1, x.cols, x.cols};
    const dim3 grid(blocks_for(x.rows, warps));
    if (divides_into_4(x) && divides_into_4(y) && divides_into_4(gain_row) &&
        divides_into_4(bias_row))
        CLT_LAUNCH(layer_norm_of_rows<4>, grid, dim3(threads), stream, x, gain, bias, epsilon, y);
    else
        CLT_LAUNCH(layer_norm_of_rows<1>, grid, dim3(threads), stream, x, gain, bias, epsilon, y);
}

void add_bias(const float* bias, DeviceMatrix<float> m, StreamHandle stream) {
    bias_then<Identity>(bias, m, stream);
}

void bias_activation(const float* bias, MlpActivation activation, DeviceMatrix<float> m,
                     StreamHandle stream) {
    switch (activation) {
        case MlpActivation::gelu_tanh:
            return bias_then<GeluTanh>(bias, m, stream);
        case MlpActivation::gelu_erf:
            return bias_then<GeluErf>(bias, m, stream);
        case MlpActivation::relu:
            return bias_then<Relu>(bias, m, stream);
    }
}

void add(DeviceMatrix<const float> from, DeviceMatrix<float> to, StreamHandle stream) {
    for_each_element(to.rows, to.cols, divides_into_4(from) && divides_into_4(to), Add{from, to},
                     stream);
}

void copy_matrix(DeviceMatrix<const float> from, DeviceMatrix<float> to, StreamHandle stream) {
    for_each_element(to.rows, to.cols, divides_into_4(from) && divides_into_4(to), Copy{from, to},
                     stream);
}

void attention(DeviceMatrix<const float> qkv, const QueryBlock* blocks, Index n, Index heads,
               DeviceMatrix<float> out, StreamHandle stream) {
    const Index width = out.cols / heads;
    const Index column_blocks = (width + tile - 1) / tile;
    const dim3 grid(blocks_for(n * heads * column_blocks, 1));
    const bool packed = width % 4 == 0 && rows_hold_packs(qkv.data, qkv.stride);
    if (packed)
        CLT_LAUNCH(attention_of_queries<true>, grid, dim3(threads), stream, qkv, blocks, heads,
                   width, column_blocks, out);
    else
        CLT_LAUNCH(attention_of_queries<false>, grid, dim3(threads), stream, qkv, blocks, heads,
                   width, column_blocks, out);
}

void predict(DeviceMatrix<const float> logits, const std::int32_t* targets, float* logsumexp,
             float* loss, std::int32_t* argmax, StreamHandle stream) {
    CLT_LAUNCH(predict_rows, dim3(blocks_for(logits.rows, 1)), dim3(threads), stream, logits,
               targets, logsumexp, loss, argmax);
}

}  // namespace clt::cuda
