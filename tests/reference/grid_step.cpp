#include "reference/grid_step.hpp"

#include <algorithm>

#include "clt/memory/raw.hpp"
#include "clt/train/optimizer.hpp"

namespace clt::reference {
namespace {

std::vector<float> floats(const Vector& values, Index begin, Index end) {
    std::vector<float> out;
    for (Index i = begin; i < end; ++i)
        out.push_back(static_cast<float>(values[static_cast<std::size_t>(i)]));
    return out;
}

bool replicated(const ParamArray& array) {
    return array.name == "decoder/bias";
}

}  // namespace

Vector rounded(Vector values) {
    for (double& value : values) value = static_cast<double>(static_cast<float>(value));
    return values;
}

std::vector<std::pair<int, int>> grids_of(int ranks) {
    std::vector<std::pair<int, int>> grids;
    for (int data = 1; data <= ranks; ++data)
        if (ranks % data == 0) grids.emplace_back(data, ranks / data);
    return grids;
}

GridStep::GridStep(const Communicator& world, int data, int feature, const RunSetup& setup,
                   std::uint64_t seed, const std::string& backend)
    : setup_(setup),
      grid_(world, data, feature),
      backend_(test::make_test_backend(world, backend)) {
    params_ = std::make_unique<Params>(
        *backend_, setup.shape, grid_.feature_shard(setup.shape.features), setup.model, seed);
    const Vector scale = setup.scale();
    step_ = std::make_unique<Step>(*backend_, grid_, *params_, setup.model, setup.loss,
                                   floats(scale, 0, static_cast<Index>(scale.size())),
                                   setup.max_tokens);
}

StepResult GridStep::with_slice(const Batch& batch,
                                const std::function<StepResult(const HostBatch&)>& work) {
    const Index stride = setup_.shape.layers * setup_.shape.d_model;
    HostBatch host;
    host.tokens = batch.tokens;
    host.slice = grid_.token_slice(batch.tokens);
    const std::vector<float> inputs =
        floats(batch.inputs, host.slice.begin * stride, host.slice.end * stride);
    const std::vector<float> targets =
        floats(batch.targets, host.slice.begin * stride, host.slice.end * stride);
    host.inputs = inputs;
    host.targets = targets;
    return work(host);
}

StepResult GridStep::train(const Batch& batch, double lambda, double learning_rate) {
    ScheduleConfig schedule;
    schedule.kind = "constant";
    OptimizerConfig optimizer = setup_.optimizer;
    optimizer.learning_rate = learning_rate;
    StepScalars scalars = step_scalars(optimizer, schedule, setup_.loss, steps_++);
    scalars.sparsity = lambda;
    return with_slice(batch, [&](const HostBatch& host) { return step_->train(host, scalars); });
}

StepResult GridStep::evaluate(const Batch& batch) {
    return with_slice(batch, [&](const HostBatch& host) { return step_->evaluate(host); });
}

Step::EvaluationSums GridStep::sums(const Batch& batch) {
    step_->reset_evaluation();
    evaluate(batch);
    return step_->evaluation_sums();
}

void GridStep::set(Parameters values) {
    const auto global = values.arrays();
    const std::vector<ParamArray> local = params_->arrays();
    CLT_CHECK(global.size() == local.size());
    for (std::size_t a = 0; a < local.size(); ++a) {
        CLT_CHECK(global[a].first == local[a].name);
        const Matrix<float>& value = local[a].rows.value;
        const Index first = local[a].first_row * value.cols;
        const std::vector<float> part =
            floats(*global[a].second, first, first + value.rows * value.cols);
        backend_->upload(std::span<const float>(part), value.elements);
    }
    params_->values_changed();
}

Parameters GridStep::gather(Matrix<float> ParamRows::*which) {
    Parameters out(setup_.shape, setup_.thresholds());
    const auto global = out.arrays();
    const std::vector<ParamArray> local = params_->arrays();
    for (std::size_t a = 0; a < local.size(); ++a) {
        const Matrix<float>& matrix = local[a].rows.*which;
        std::vector<float> part(static_cast<std::size_t>(matrix.rows * matrix.cols));
        backend_->download(Span<const float>(matrix.elements), std::span<float>(part));
        Vector& values = *global[a].second;
        CLT_CHECK(static_cast<Index>(values.size()) == local[a].global_rows * matrix.cols);
        for (std::size_t i = 0; i < part.size(); ++i)
            values[static_cast<std::size_t>(local[a].first_row * matrix.cols) + i] =
                static_cast<double>(part[i]);
        if (!replicated(local[a])) grid_.feature().all_reduce_sum(std::span<double>(values));
    }
    return out;
}

bool GridStep::replicas_agree() {
    bool agree = true;
    for (const auto which : {&ParamRows::value, &ParamRows::moment1, &ParamRows::moment2}) {
        Parameters mine = gather(which);
        for (const auto& [name, values] : mine.arrays()) {
            Vector first = *values;
            grid_.all().broadcast(std::span<double>(first));
            agree = agree && first == *values;
        }
    }
    return grid_.all().agree(agree);
}

Vector GridStep::reconstruction(const Batch& batch) {
    const auto stride = static_cast<std::size_t>(setup_.shape.layers * setup_.shape.d_model);
    const Vector scale = setup_.scale();
    Batch probe = batch;
    probe.targets.assign(batch.targets.size(), 0);
    const std::vector<double> at_zero = sums(probe).error_squared;
    Vector out;
    for (Index b = 0; b < batch.tokens; ++b) {
        const auto first = probe.targets.begin() + b * static_cast<Index>(stride);
        std::fill_n(first, stride, 1.0);
        const std::vector<double> at_one = sums(probe).error_squared;
        std::fill_n(first, stride, 0.0);
        for (std::size_t i = 0; i < stride; ++i)
            out.push_back((1 - (at_one[i] - at_zero[i]) / (scale[i] * scale[i])) / 2);
    }
    return out;
}

Vector GridStep::activation(const Batch& batch) {
    const auto& [layers, d, features] = setup_.shape;
    const Parameters original = values();
    Vector out(static_cast<std::size_t>(batch.tokens * layers * features));
    for (Index first = 0; first < features; first += d) {
        Parameters probe = original;
        std::fill(probe.decoder_bias.begin(), probe.decoder_bias.end(), 0.0);
        for (Index l = 0; l < layers; ++l) {
            Vector& decoder = probe.decoder[static_cast<std::size_t>(l)];
            std::fill(decoder.begin(), decoder.end(), 0.0);
            for (Index f = first; f < std::min(first + d, features); ++f)
                decoder[static_cast<std::size_t>(f * setup_.shape.decoder_width(l) + f - first)] =
                    1;
        }
        set(probe);
        const Vector copies = reconstruction(batch);
        for (Index row = 0; row < batch.tokens * layers; ++row)
            for (Index f = first; f < std::min(first + d, features); ++f)
                out[static_cast<std::size_t>(row * features + f)] =
                    copies[static_cast<std::size_t>(row * d + f - first)];
    }
    set(original);
    return out;
}

}  // namespace clt::reference
