#include "clt/train/optimizer.hpp"

#include <cmath>

#include "train/schedule.hpp"

namespace clt {

StepScalars step_scalars(const OptimizerConfig& optimizer, const ScheduleConfig& schedule,
                         const LossConfig& loss, Index step, Index updates_before) {
    const auto t = static_cast<double>(updates_before + step + 1);
    const double rate = learning_rate(schedule, optimizer.learning_rate, step);

    StepScalars scalars;
    scalars.adam.step_size = static_cast<float>(rate / (1 - std::pow(optimizer.beta1, t)));
    scalars.adam.beta1 = static_cast<float>(optimizer.beta1);
    scalars.adam.beta2 = static_cast<float>(optimizer.beta2);
    scalars.adam.rest1 = static_cast<float>(1 - optimizer.beta1);
    scalars.adam.rest2 = static_cast<float>(1 - optimizer.beta2);
    scalars.adam.epsilon = static_cast<float>(optimizer.epsilon);
    scalars.adam.inverse_root_correction2 =
        static_cast<float>(1 / std::sqrt(1 - std::pow(optimizer.beta2, t)));
    scalars.adam_bias = scalars.adam;
    if (optimizer.kind == "adamw") {
        scalars.adam.decay = static_cast<float>(rate * optimizer.weight_decay);
        if (optimizer.reference_biases) scalars.adam_bias.decay = scalars.adam.decay;
    }
    scalars.reference_biases = optimizer.reference_biases;
    scalars.gradient_clip = optimizer.gradient_clip;
    scalars.sparsity = sparsity_weight(loss, schedule.total(), step);
    return scalars;
}

}  // namespace clt
