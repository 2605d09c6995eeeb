// From a job's tables to the scalars of one step: what Adam needs at step t, computed in double.
#pragma once

#include "clt/model/step.hpp"
#include "clt/train/config.hpp"

namespace clt {

/// Scalars of step `step` (from 0; Adam's t is updates_before + step + 1, also after a step that
/// was skipped for a loss that is not finite: the scalars stay a function of the step alone).
/// updates_before: updates that the moments had seen before the run's first step, which is more
/// than 0 in a run that was started from another run's checkpoint with its optimizer. adamw decays
/// weights by lr * weight_decay, biases and thresholds only with reference_biases; adam decays
/// nothing.
StepScalars step_scalars(const OptimizerConfig& optimizer, const ScheduleConfig& schedule,
                         const LossConfig& loss, Index step, Index updates_before = 0);

}  // namespace clt
