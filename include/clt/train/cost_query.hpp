// A train job as the cost model sees it.
#pragma once

#include "clt/data/dataset.hpp"
#include "clt/model/cost.hpp"
#include "clt/train/config.hpp"

namespace clt {

/// What the costs depend on of a data set.
struct DataShape {
    Index layers = 0;
    Index d_model = 0;
    Index tokens = 0;         // 0: unknown
    Index largest_chunk = 0;  // rows; 0: unknown
    Index element_bytes = 4;  // of a stored number
};
DataShape data_shape(const ActivationDataset& dataset);

/// tile is left to the caller: it knows the backend.
CostQuery cost_query(const TrainJob& job, const DataShape& data, Index data_parts,
                     Index feature_parts);

}  // namespace clt
