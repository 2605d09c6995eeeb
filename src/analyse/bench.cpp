#include "clt/analyse/bench.hpp"

#include <omp.h>
#include <sys/resource.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "analyse/rates.hpp"
#include "analyse/synthetic.hpp"
#include "clt/base/log.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/base/version.hpp"
#include "clt/model/cost.hpp"
#include "clt/model/step.hpp"
#include "clt/train/optimizer.hpp"

namespace clt {
namespace {

// Batches take turns, so that no step sees the selection's exact threshold of the last one.
constexpr Index batches = 3;

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

Index peak_rss_bytes() {
    struct rusage usage {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<Index>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

struct Timings {
    std::vector<double> step_s;                            // of the slowest rank
    std::vector<std::pair<std::string, double>> stages_s;  // means of this rank
    Index selection_retries = 0;
    StepResult last;
};

// A step's time is that from return to return of train(), which comes back while the work of the
// update may still run: waiting for it would keep the next batch's upload from running beside it.
Timings time_steps(const BenchOptions& options, const ModelConfig& model, Backend& backend,
                   const ProcessGrid& grid) {
    const Shape shape{options.layers, options.d_model, options.features};
    Params params(backend, shape, grid.feature_shard(shape.features), model, /*seed=*/1);
    const std::vector<float> error_scale(static_cast<std::size_t>(shape.layers * shape.d_model),
                                         1.0F);
    const LossConfig loss;
    Step step(backend, grid, params, model, loss, error_scale, options.batch);
    std::vector<SyntheticBatch> data;
    for (Index i = 0; i < batches; ++i)
        data.emplace_back(i, options.batch, shape.layers, shape.d_model, grid).pin(backend);

    ScheduleConfig schedule;
    schedule.steps = options.warmup + options.steps;
    schedule.kind = "constant";
    Timings timings;
    Stopwatch watch;
    for (Index i = 0; i < schedule.steps; ++i) {
        if (i == options.warmup) {
            step.take_stage_seconds();
            backend.synchronize();
            grid.all().barrier();
            watch.lap();
        }
        const HostBatch batch = data[static_cast<std::size_t>(i % batches)].batch();
        timings.last = step.train(batch, step_scalars(OptimizerConfig(), schedule, loss, i));
        if (i >= options.warmup) timings.selection_retries += timings.last.selection_retries;
        if (i + 1 == schedule.steps) backend.synchronize();
        if (i >= options.warmup) timings.step_s.push_back(watch.lap());
    }
    for (double& seconds : timings.step_s) seconds = grid.all().all_reduce_max(seconds);
    timings.stages_s = step.take_stage_seconds();
    for (auto& [stage, seconds] : timings.stages_s) seconds /= static_cast<double>(options.steps);
    return timings;
}

}  // namespace

std::string bench_step(const BenchOptions& options, Backend& backend, const Communicator& world) {
    const ProcessGrid grid(world, options.grid);
    const Shape shape{options.layers, options.d_model, options.features};
    ModelConfig model;
    model.features = options.features;
    model.activation = options.activation;
    model.k = options.k;

    CostQuery query;
    query.shape = shape;
    query.model = model;
    query.batch_tokens = options.batch;
    query.data_parts = grid.data_parts();
    query.feature_parts = grid.feature_parts();
    const Index replica_tokens = grid.replica_tokens(options.batch).size();
    describe_backend(backend, query);
    const StepCost cost = step_cost(query);
    check_memory(cost, backend, grid.all());

    const Machine machine = measure_rates(backend, replica_tokens, options.d_model, grid.all());
    backend.memory().return_free_blocks();
    const Timings timings = time_steps(options, model, backend, grid);
    const double step_s = median(timings.step_s);

    nlohmann::ordered_json json;
    json["step_s"] = step_s;
    json["step_s_min"] = *std::min_element(timings.step_s.begin(), timings.step_s.end());
    json["tokens_per_s"] = static_cast<double>(options.batch) / step_s;
    json["floor_s"] = floor_s(cost, machine);
    json["ratio_to_floor"] = step_s / floor_s(cost, machine);
    json["floor"] = nlohmann::ordered_json::object();
    for (const StageFloor& stage : cost.stages)
        json["floor"][stage.stage] = floor_s(stage, machine);
    json["stages"] = nlohmann::ordered_json::object();
    for (const auto& [stage, seconds] : timings.stages_s) json["stages"][stage] = seconds;
    const Index peak = peak_rss_bytes();
    const Index peak_sum = world.all_reduce_sum(peak);
    json["peak_rss_bytes"] = peak_sum;
    json["peak_rss_bytes_max"] = world.all_reduce_max(peak);
    if (backend.free_bytes())
        json["peak_device_bytes_max"] =
            world.all_reduce_max(static_cast<Index>(backend.memory().peak_bytes()));
    json["parameters"] = shape.parameters();
    json["bytes_per_parameter"] =
        static_cast<double>(peak_sum) / static_cast<double>(shape.parameters());
    json["ranks"] = world.size();
    json["grid"] = {{"data", grid.data_parts()}, {"feature", grid.feature_parts()}};
    json["threads"] = omp_get_max_threads();
    json["gflops"] = machine.gflops;
    if (machine.float32_gflops > 0) json["float32_gflops"] = machine.float32_gflops;
    json["gbytes_per_s"] = machine.gbytes_per_s;
    json["layers"] = options.layers;
    json["d_model"] = options.d_model;
    json["features"] = options.features;
    json["k"] = options.k;
    json["batch"] = options.batch;
    json["steps"] = options.steps;
    json["activation"] = options.activation;
    json["l0"] = std::accumulate(timings.last.l0.begin(), timings.last.l0.end(), 0.0);
    json["loss"] = timings.last.total;
    json["selection_retries"] = timings.selection_retries;
    json["backend"] = backend.name();
    json["revision"] = revision();
    return json.dump(2);
}

}  // namespace clt
