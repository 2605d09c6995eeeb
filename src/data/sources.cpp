#include "clt/data/sources.hpp"

#include <algorithm>
#include <cmath>

#include "clt/base/log.hpp"
#include "clt/data/dataset.hpp"
#include "data/dataset_source.hpp"

namespace clt {
namespace {

/// Rows at the end of a chunk that are held out. Rows are in random order since generation.
Index held_out_rows(Index rows, double fraction) {
    return std::llround(static_cast<double>(rows) * fraction);
}

void check_held_out(const ActivationDataset& dataset, double fraction) {
    if (fraction == 0) return;
    Index largest = 0;
    for (const ChunkInfo& chunk : dataset.chunks()) largest = std::max(largest, chunk.rows);
    if (largest > 0 && held_out_rows(largest, fraction) == 0)
        user_error(
            "[data] holdout_fraction = {}: holds out no token of {}, whose largest chunk has {}; "
            "expected 0 or at least {:.2g}",
            fraction, dataset.path(), largest, 1.0 / static_cast<double>(largest));
}

std::vector<Unit> training_units(const ActivationDataset& dataset, const DataConfig& config) {
    std::vector<Unit> units;
    for (std::size_t chunk = 0; chunk < dataset.chunks().size(); ++chunk) {
        const Index all = dataset.chunks()[chunk].rows;
        const Index rows = all - held_out_rows(all, config.holdout_fraction);
        const Index window = config.window_tokens > 0 ? config.window_tokens : rows;
        const Index pieces = rows == 0 ? 0 : (rows + window - 1) / window;
        for (Index piece = 0; piece < pieces; ++piece) {
            const Shard part = shard_of(rows, piece, pieces);
            units.push_back({chunk, part.begin, part.size()});
        }
    }
    return units;
}

/// Pieces of a batch, at most max_tokens (0: all), from the held-out rows or from all.
std::vector<Unit> evaluation_units(const ActivationDataset& dataset, double fraction,
                                   Index batch_tokens, Index max_tokens) {
    std::vector<Unit> units;
    Index left = max_tokens > 0 ? max_tokens : dataset.tokens();
    for (std::size_t chunk = 0; chunk < dataset.chunks().size(); ++chunk) {
        const Index end = dataset.chunks()[chunk].rows;
        for (Index at = end - held_out_rows(end, fraction); at < end && left > 0;) {
            const Index rows = std::min({batch_tokens, end - at, left});
            units.push_back({chunk, at, rows});
            at += rows;
            left -= rows;
        }
    }
    return units;
}

std::string describe(const DataConfig& config) {
    std::string text = fmt::format("sampling = {}, window_tokens = {}, holdout_fraction = {}",
                                   config.sampling, config.window_tokens, config.holdout_fraction);
    if (config.sampling == "random_chunk")
        text += fmt::format(", batch_tokens = {}", config.batch_tokens);
    return text;
}

// By the I/O thread: it may be busy with another source or a checkpoint.
std::shared_ptr<const ActivationDataset> open(const std::string& path, const DataConfig& config,
                                              const ProcessGrid& grid, Workers& workers) {
    std::shared_ptr<const ActivationDataset> dataset;
    const VerifyData verify = config.verify == "always"      ? VerifyData::always
                              : config.verify == "first_use" ? VerifyData::first_use
                                                             : VerifyData::off;
    workers.io.call([&] {
        dataset = std::make_shared<const ActivationDataset>(path, grid.all(),
                                                            DatasetOptions{.verify = verify});
        dataset->refuse_lost_signs(grid.all());
    });
    return dataset;
}

}  // namespace

std::unique_ptr<BatchSource> make_training_source(const DataConfig& config,
                                                  const Normalization& normalization,
                                                  std::uint64_t seed, const ProcessGrid& grid,
                                                  Backend& backend, Workers& workers) {
    const auto dataset = open(config.path, config, grid, workers);
    check_held_out(*dataset, config.holdout_fraction);
    DatasetSourcePlan plan{.units = training_units(*dataset, config),
                           .sampling = config.sampling == "random_chunk" ? Sampling::random_chunk
                                                                         : Sampling::sequential,
                           .seed = seed,
                           .batch_tokens = config.batch_tokens,
                           .prefetch = config.prefetch,
                           .settings = describe(config)};
    if (plan.units.empty())
        user_error("{}: has no tokens to train on (total_tokens = {}, holdout_fraction = {})",
                   config.path, dataset->tokens(), config.holdout_fraction);
    const auto largest =
        std::max_element(plan.units.begin(), plan.units.end(),
                         [](const Unit& a, const Unit& b) { return a.rows < b.rows; });
    // Two windows stay in memory: with more, nearly every batch has to read its own.
    if (plan.sampling == Sampling::random_chunk && plan.units.size() > 2 &&
        largest->rows > 4 * config.batch_tokens)
        log_warning(
            "data.sampling = random_chunk reads up to {} rows for a batch of {}; "
            "data.window_tokens = {} reads only what is used",
            largest->rows, config.batch_tokens, config.batch_tokens);
    return std::make_unique<DatasetSource>(
        dataset, std::move(plan), RowConverter(*dataset, normalization), grid, backend, workers);
}

std::unique_ptr<BatchSource> make_evaluation_source(const DataConfig& config,
                                                    const Normalization& normalization,
                                                    Index max_tokens, bool whole,
                                                    const ProcessGrid& grid, Backend& backend,
                                                    Workers& workers) {
    const bool second = !whole && !config.evaluation_path.empty();
    if (!whole && !second && config.holdout_fraction == 0) return nullptr;
    const auto dataset = open(second ? config.evaluation_path : config.path, config, grid, workers);
    if (!whole && !second) check_held_out(*dataset, config.holdout_fraction);
    DatasetSourcePlan plan{
        .units = evaluation_units(*dataset, whole || second ? 1.0 : config.holdout_fraction,
                                  config.batch_tokens, max_tokens),
        .sampling = Sampling::in_order,
        .batch_tokens = config.batch_tokens,
        .prefetch = config.prefetch,
        .settings = fmt::format("at most {} tokens in order, holdout_fraction = {}", max_tokens,
                                config.holdout_fraction)};
    if (plan.units.empty()) return nullptr;
    return std::make_unique<DatasetSource>(
        dataset, std::move(plan), RowConverter(*dataset, normalization), grid, backend, workers);
}

}  // namespace clt
