#include "clt/train/cost_query.hpp"

#include <algorithm>

namespace clt {

DataShape data_shape(const ActivationDataset& dataset) {
    DataShape shape{dataset.layers(), dataset.d_model(), dataset.tokens(), 0,
                    size_of(dataset.dtype())};
    for (const ChunkInfo& chunk : dataset.chunks())
        shape.largest_chunk = std::max(shape.largest_chunk, chunk.rows);
    return shape;
}

CostQuery cost_query(const TrainJob& job, const DataShape& data, Index data_parts,
                     Index feature_parts) {
    CostQuery query;
    query.shape = {data.layers, data.d_model, job.model.features};
    query.model = job.model;
    query.loss = job.loss;
    query.gradient_clip = job.optimizer.gradient_clip;
    query.batch_tokens = job.data.batch_tokens;
    query.data_parts = data_parts;
    query.feature_parts = feature_parts;
    const Index window = job.data.window_tokens;  // 0: whole chunks
    query.window_tokens = window > 0 && data.largest_chunk > 0
                              ? std::min(window, data.largest_chunk)
                              : std::max(window, data.largest_chunk);
    query.element_bytes = data.element_bytes;
    query.prefetch = job.data.prefetch;
    query.keeps_checkpoint_copy = true;
    return query;
}

}  // namespace clt
