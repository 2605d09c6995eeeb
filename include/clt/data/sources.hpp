// Makes batch sources from a [data] table.
#pragma once

#include <memory>

#include "clt/comm/process_grid.hpp"
#include "clt/data/batch_source.hpp"
#include "clt/data/config.hpp"

namespace clt {

/// The training part of config.path (without the held-out rows). Collective over grid.all().
std::unique_ptr<BatchSource> make_training_source(const DataConfig& config, std::uint64_t seed,
                                                  const ProcessGrid& grid);
/// One pass over the held-out rows, or over config.evaluation_path, or (whole == true) over all of
/// config.path; in chunk order, at most max_tokens (0: all). Null when there is nothing held out.
/// Collective.
std::unique_ptr<BatchSource> make_evaluation_source(const DataConfig& config, Index max_tokens,
                                                    bool whole, const ProcessGrid& grid);

}  // namespace clt
