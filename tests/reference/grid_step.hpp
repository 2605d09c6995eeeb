// The production step on a grid of ranks, fed and read as the oracle is: global arrays in double.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/comm/process_grid.hpp"
#include "clt/model/params.hpp"
#include "clt/model/step.hpp"
#include "clt/train/config.hpp"
#include "reference/dense_clt.hpp"
#include "support/test_backend.hpp"

namespace clt::reference {

/// What a run is, whatever computes it.
struct RunSetup {
    Shape shape;
    ModelConfig model;
    LossConfig loss;
    OptimizerConfig optimizer;
    Vector error_scale;  // [L, d]; empty: ones
    Index max_tokens = 0;

    bool thresholds() const { return model.activation == "jumprelu"; }
    Vector scale() const {
        return error_scale.empty()
                   ? Vector(static_cast<std::size_t>(shape.layers * shape.d_model), 1.0)
                   : error_scale;
    }
    DenseClt oracle() const { return {shape, model, loss, scale()}; }
};

/// All calls are collective over `world`, which must outlive this. Batches and parameters are the
/// global ones, the same on every rank; values should be floats so that nothing is lost on the way.
class GridStep {
  public:
    /// On the backend under test, or the one named.
    GridStep(const Communicator& world, int data, int feature, const RunSetup& setup,
             std::uint64_t seed = 1, const std::string& backend = test::test_backend_name());

    StepResult train(const Batch& batch, double lambda, double learning_rate);
    StepResult evaluate(const Batch& batch);
    /// Sums of this batch alone.
    Step::EvaluationSums sums(const Batch& batch);

    void set(Parameters values);
    Parameters values() { return gather(&ParamRows::value); }
    Parameters moment1() { return gather(&ParamRows::moment1); }
    Parameters moment2() { return gather(&ParamRows::moment2); }
    /// True when every replica holds the very same bits of values and moments.
    bool replicas_agree();

    /// [B, L, d] yhat, by evaluations that differ in one token's targets: sum_b (yhat_b - y_b)^2
    /// changes by c^2 - 2 c yhat_b when token b's target moves from 0 to c.
    Vector reconstruction(const Batch& batch);
    /// [B, L, F], read as reconstructions of decoders that copy d features at a time.
    Vector activation(const Batch& batch);

    Step& step() { return *step_; }
    const ProcessGrid& grid() const { return grid_; }

  private:
    Parameters gather(Matrix<float> ParamRows::*which);
    /// Calls `work` with this rank's part of the batch.
    StepResult with_slice(const Batch& batch,
                          const std::function<StepResult(const HostBatch&)>& work);

    RunSetup setup_;
    ProcessGrid grid_;
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<Params> params_;
    std::unique_ptr<Step> step_;
    Index steps_ = 0;
};

/// data x feature grids of this many ranks, all of them.
std::vector<std::pair<int, int>> grids_of(int ranks);

/// [values] rounded to float.
Vector rounded(Vector values);

}  // namespace clt::reference
