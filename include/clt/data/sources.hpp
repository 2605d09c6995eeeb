// Makes batch sources from a [data] table.
#pragma once

#include <memory>

#include "clt/backend/backend.hpp"
#include "clt/base/worker.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/data/batch_source.hpp"
#include "clt/data/config.hpp"
#include "clt/data/training_data.hpp"

namespace clt {

/// The training part of config.path (without the held-out rows), for uploads to `backend`, which
/// must outlive it as the grid and the workers must. Scaled by `normalization`, whatever config
/// says. Throws UserError when the data set has another shape. Collective over grid.all().
std::unique_ptr<BatchSource> make_training_source(const DataConfig& config,
                                                  const Normalization& normalization,
                                                  std::uint64_t seed, const ProcessGrid& grid,
                                                  Backend& backend, Workers& workers);
/// One pass over the held-out rows, or over config.evaluation_path, or (whole == true) over all of
/// config.path; in chunk order, at most max_tokens (0: all). Null when there is nothing held out.
/// normalization: that of the training data, from which the model learned. Collective.
std::unique_ptr<BatchSource> make_evaluation_source(const DataConfig& config,
                                                    const Normalization& normalization,
                                                    Index max_tokens, bool whole,
                                                    const ProcessGrid& grid, Backend& backend,
                                                    Workers& workers);

}  // namespace clt
