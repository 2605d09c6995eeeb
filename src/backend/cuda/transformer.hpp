// Launchers of the language model's kernels; their meaning is on the page of backend.hpp. T tokens.
#pragma once

#include "backend/cuda/device_matrix.hpp"
#include "clt/backend/plain.hpp"

using StreamHandle = struct CUstream_st*;

namespace clt::cuda {

/// ids[T]; starts[sequences + 1]; the first token is 0
void embed(const std::int32_t* ids, const Index* starts, Index sequences,
           DeviceMatrix<const float> token_rows, DeviceMatrix<const float> position_rows,
           DeviceMatrix<float> x, StreamHandle stream);

/// gain, bias: [d]
void layer_norm(DeviceMatrix<const float> x, const float* gain, const float* bias, float epsilon,
                DeviceMatrix<float> y, StreamHandle stream);

/// bias[cols]
void add_bias(const float* bias, DeviceMatrix<float> m, StreamHandle stream);

/// bias[cols]
void bias_activation(const float* bias, MlpActivation activation, DeviceMatrix<float> m,
                     StreamHandle stream);

void add(DeviceMatrix<const float> from, DeviceMatrix<float> to, StreamHandle stream);

void copy_matrix(DeviceMatrix<const float> from, DeviceMatrix<float> to, StreamHandle stream);

/// Queries a block of attention() takes, of one sequence.
inline constexpr Index query_block = 64;
struct QueryBlock {
    Index start = 0;  // the sequence's first token
    Index first = 0;  // the block's first query within the sequence
    Index count = 0;  // 1..query_block
};
/// blocks[n]
void attention(DeviceMatrix<const float> qkv, const QueryBlock* blocks, Index n, Index heads,
               DeviceMatrix<float> out, StreamHandle stream);

/// targets, logsumexp, loss, argmax: [T]
void predict(DeviceMatrix<const float> logits, const std::int32_t* targets, float* logsumexp,
             float* loss, std::int32_t* argmax, StreamHandle stream);

}  // namespace clt::cuda
