// The batch source over an activation data set. next() runs in lockstep on all ranks and gives two
// threads their tasks: one reads windows of rows, one makes batches of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/base/worker.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/data/batch_source.hpp"
#include "data/row_converter.hpp"
#include "data/sampler.hpp"
#include "data/window_reader.hpp"

namespace clt {

/// What the order of tokens depends on, beside the data.
struct DatasetSourcePlan {
    std::vector<Unit> units;
    Sampling sampling = Sampling::sequential;
    std::uint64_t seed = 0;
    Index batch_tokens = 0;
    Index prefetch = 0;
    std::string settings;  // in words; a cursor of other settings is refused
};

class DatasetSource final : public BatchSource {
  public:
    /// Collective over grid.all(), as is destruction. The grid, the backend, which batches are
    /// uploaded to, and the workers must outlive it.
    DatasetSource(std::shared_ptr<const ActivationDataset> dataset, DatasetSourcePlan plan,
                  RowConverter converter, const ProcessGrid& grid, Backend& backend,
                  Workers& workers);
    ~DatasetSource() override;

    Index layers() const override;
    Index d_model() const override;
    Index tokens() const override;
    HostBatch next() override;
    std::string cursor() const override;
    void seek(const std::string& cursor) override;
    void reorder(Index order) override;
    const std::vector<float>& error_scale() const override;

  private:
    struct Shared;    // what tasks use beside the pipeline
    struct Pipeline;  // what is under way, from one position on

    void stop();

    const ProcessGrid* grid_;
    Backend* backend_;
    Workers* workers_;
    std::unique_ptr<Shared> shared_;
    std::unique_ptr<Pipeline> pipeline_;  // made by the first next()
    StreamPosition position_;
    Index order_ = 0;
    bool over_ = false;
};

}  // namespace clt
