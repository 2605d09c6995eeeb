#include "train/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "clt/base/error.hpp"

namespace clt {
namespace {

// The reference leaves the penalty out below this.
constexpr double smallest_sparsity = 1e-9;

double shape_of(const ScheduleConfig& schedule, double base, Index step) {
    const auto total = static_cast<double>(schedule.total());
    const double t = std::min(static_cast<double>(step), total);
    if (schedule.kind == "constant") return base;
    if (schedule.kind == "linear")
        return base *
               (schedule.start_factor + (schedule.end_factor - schedule.start_factor) * t / total);
    if (schedule.kind == "cosine")
        return schedule.minimum +
               (base - schedule.minimum) * (1 + std::cos(std::numbers::pi * t / total)) / 2;
    CLT_CHECK(schedule.kind == "linear_final", "schedule {}", schedule.kind);
    const double decay_start = std::floor(schedule.decay_start * total);
    if (t < decay_start) return base;
    return t < total ? base * (total - t) / (total - decay_start) : 0.0;
}

}  // namespace

double learning_rate(const ScheduleConfig& schedule, double base, Index step) {
    const double rate = shape_of(schedule, base, step);
    if (step + 1 >= schedule.warmup_steps) return rate;
    return rate * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
}

double sparsity_weight(const LossConfig& loss, Index horizon, Index step) {
    const auto total = static_cast<double>(horizon);
    const auto t = static_cast<double>(step);
    const double start =
        loss.sparsity_schedule == "delayed_linear" ? loss.sparsity_delay * total : 0;
    if (t < start) return 0;
    const double weight = loss.sparsity * (t < total ? (t - start) / (total - start) : 1.0);
    return weight < smallest_sparsity ? 0 : weight;
}

}  // namespace clt
