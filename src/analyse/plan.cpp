#include "clt/analyse/plan.hpp"

#include <algorithm>

#include "clt/backend/backend.hpp"
#include "clt/backend/cuda_sizes.hpp"
#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "clt/memory/available.hpp"
#include "clt/train/cost_query.hpp"

namespace clt {
namespace {

double mega(double n) {
    return n / 1e6;
}
double mega(Index n) {
    return mega(static_cast<double>(n));
}

/// "2 h 5 min", for estimates.
std::string rough_time(double seconds) {
    if (seconds < 120) return fmt::format("{:.0f} s", seconds);
    const auto minutes = static_cast<Index>(std::min(seconds, 1e15) / 60);
    if (minutes < 120) return fmt::format("{} min", minutes);
    return fmt::format("{} h {} min", minutes / 60, minutes % 60);
}

GridConfig grid_of(const GridConfig& config, Index ranks) {
    GridConfig grid = config;
    if (ranks == 0) ranks = config.data * std::max<Index>(config.feature, 1);
    if (grid.feature == 0) grid.feature = std::max<Index>(1, ranks / grid.data);
    if (grid.data * grid.feature != ranks)
        user_error(
            "[grid] data = {} times feature = {} is {}, but the plan is for {} rank{}: they must "
            "be equal",
            grid.data, grid.feature, grid.data * grid.feature, ranks, ranks == 1 ? "" : "s");
    return grid;
}

std::string memory_table(const StepCost& cost, bool on_device, Index available) {
    std::string text = fmt::format("\n{:<56}{:>12}\n",
                                   on_device ? "memory of a rank's GPU" : "memory of a rank", "MB");
    for (const MemoryUse& use : cost.memory)
        if (use.on_device == on_device)
            text += fmt::format("  {:<54}{:>12.1f}\n", use.purpose, mega(use.bytes));
    text += fmt::format("  {:<54}{:>12.1f}\n", "sum", mega(cost.memory_bytes(on_device)));
    return text + fmt::format("  {:<54}{:>12.1f}\n",
                              on_device ? "the GPU has" : "the host has for each of its ranks",
                              mega(available));
}

std::string kernel_table(const Plan& plan, double step_floor_s) {
    std::string text = fmt::format(
        "\nexpected time of each kernel (estimates, src/model/cuda_cost.cpp)\n"
        "  {:<16}{:<26}{:>9}{:>10}{:>10}{:>10}{:>9}\n",
        "stage", "kernel", "launches", "GFLOP", "MB", "MB of L2", "ms");
    double sum = 0;
    for (const KernelCost& kernel : plan.cost.kernels) {
        const double seconds = expected_s(kernel, plan.machine);
        sum += seconds;
        text += fmt::format("  {:<16}{:<26}{:>9}{:>10.1f}{:>10.1f}{:>10.1f}{:>9.3f}\n",
                            kernel.stage, kernel.kernel, kernel.launches, kernel.flop / 1e9,
                            mega(kernel.bytes), mega(kernel.cache_bytes), seconds * 1e3);
    }
    return text + fmt::format("  {:<81}{:>9.3f}\n  {:<81}{:>9.2f}\n", "sum", sum * 1e3,
                              "expected over floor", sum / step_floor_s);
}

std::string communication_table(const StepCost& cost) {
    std::string text = fmt::format("\n{:<56}{:>12}\n", "sent by a rank in a step", "MB");
    for (const Traffic& traffic : cost.communication)
        text += fmt::format("  {:<22}{:<32}{:>12.3f}\n", traffic.what, traffic.collective,
                            mega(traffic.bytes));
    return text + fmt::format("  {:<54}{:>12.3f}\n", "sum", mega(cost.communication_bytes()));
}

}  // namespace

Plan make_plan(const TrainJob& job, const PlanOptions& options, const Communicator& world) {
    if ((options.layers > 0) != (options.d_model > 0))
        user_error("--layers and --d-model: expected both or none of them");
    Plan plan;
    DataShape data;
    data.layers = options.layers;
    data.d_model = options.d_model;
    bool found = false;
    world.together([&] { found = path_exists(job.data.path); });
    if (options.layers == 0 && !world.broadcast(found))
        user_error(
            "[data] path = {}: no such folder; before there is a data set give --layers and "
            "--d-model",
            job.data.path);
    if (options.layers == 0) data = data_shape(ActivationDataset(job.data.path, world));
    const GridConfig grid = grid_of(job.grid, options.ranks);
    plan.query = cost_query(job, data, grid.data, grid.feature);
    plan.data_tokens = data.tokens;
    const Index replica = (job.data.batch_tokens + grid.data - 1) / grid.data;
    const bool cuda = job.job.backend == "cuda";
    plan.query.cuda = cuda;
    if (cuda) plan.query.communicator_bytes = nccl_communicator_bytes;
    plan.query.rounded = cuda && (job.job.precision == "auto" || job.job.precision == "bfloat16");
    // A plan needs no GPU, nor a program that has the CUDA backend.
    plan.query.tile = cuda ? cuda_encode_tile(replica, h100_l2_bytes)
                           : make_backend("cpu", world)->encode_tile(replica, data.d_model);
    plan.cost = step_cost(plan.query);
    const Index ranks = grid.data * grid.feature;
    plan.ranks_per_host =
        options.ranks_per_host > 0 ? std::min(options.ranks_per_host, ranks) : ranks;
    plan.machine = cuda ? h100(job.job.precision) : Machine();  // one rank a GPU
    if (!cuda) plan.machine.ranks = plan.ranks_per_host;
    if (options.gflops > 0) plan.machine.gflops = options.gflops;
    if (options.gbytes_per_s > 0) plan.machine.gbytes_per_s = options.gbytes_per_s;
    plan.host_bytes = options.host_bytes > 0 ? options.host_bytes : available_host_bytes();
    plan.device_bytes = options.device_bytes > 0 ? options.device_bytes : h100_bytes;
    plan.steps = job.schedule.steps;
    return plan;
}

void check_memory(const Plan& plan) {
    if (plan.query.cuda) check_memory(plan.cost, plan.device_bytes, 1, /*on_device=*/true);
    check_memory(plan.cost, plan.host_bytes, plan.ranks_per_host);
}

std::string to_text(const Plan& plan) {
    const CostQuery& q = plan.query;
    const StepCost& cost = plan.cost;
    const Machine& machine = plan.machine;
    const Index ranks = q.data_parts * q.feature_parts;
    std::string text = fmt::format(
        "L {} layers, d {}, F {} features a layer, {}{}, B {} tokens a step\n"
        "{} parameters; {} rank{}: {} data x {} feature, {} a host\n",
        q.shape.layers, q.shape.d_model, q.shape.features, q.model.activation,
        q.model.k > 0 ? fmt::format(" k {}", q.model.k) : "", q.batch_tokens, cost.parameters,
        ranks, ranks == 1 ? "" : "s", q.data_parts, q.feature_parts, plan.ranks_per_host);

    if (q.cuda) text += memory_table(cost, true, plan.device_bytes);
    text += memory_table(cost, false, plan.host_bytes / plan.ranks_per_host);
    text += fmt::format("  {:<54}{:>12.1f}\n", "a checkpoint on disk", mega(cost.checkpoint_bytes));

    if (ranks > 1) text += communication_table(plan.cost);
    text += fmt::format(
        "\nfloor of a step at {:g} GFLOP/s and {:g} GB/s a {}; the network is not in it\n"
        "  {:<30}{:>12}{:>12}{:>12}\n",
        machine.gflops, machine.gbytes_per_s, q.cuda ? "GPU" : "host", "of a rank", "GFLOP", "MB",
        "ms");
    for (const StageFloor& stage : cost.stages)
        text += fmt::format("  {:<30}{:>12.3f}{:>12.1f}{:>12.2f}\n", stage.stage, stage.flop / 1e9,
                            mega(stage.bytes), floor_s(stage, machine) * 1e3);
    const double step_s = floor_s(cost, machine);
    text += fmt::format("  {:<54}{:>12.2f}\n", "sum", step_s * 1e3);
    text += fmt::format("  {:<54}{:>12.0f}\n", "tokens a second, at most",
                        static_cast<double>(q.batch_tokens) / step_s);

    if (q.cuda) text += kernel_table(plan, step_s);
    const double tokens = static_cast<double>(q.batch_tokens) * static_cast<double>(plan.steps);
    text += fmt::format("\nthe run: {} steps, {:.4g} million tokens", plan.steps, mega(tokens));
    if (plan.data_tokens > 0)
        text += fmt::format(" ({:.2f} times the data set's {})",
                            tokens / static_cast<double>(plan.data_tokens), plan.data_tokens);
    text += fmt::format(", at least {}\n", rough_time(step_s * static_cast<double>(plan.steps)));
    return text;
}

}  // namespace clt
