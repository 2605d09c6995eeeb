// Learning rate and sparsity weight as pure functions of the step, so a resumed run needs no state
// for them. Steps count from 0; T = ScheduleConfig::total(). Source: reference-spec 6.2 and 7.3.
#pragma once

#include "clt/model/config.hpp"
#include "clt/train/config.hpp"

namespace clt {

/// Learning rate of step t, base being the optimiser's:
///   linear        base * (s + (e - s) * min(t, T) / T)
///   cosine        minimum + (base - minimum) * (1 + cos(pi * min(t, T) / T)) / 2
///   linear_final  base while t < D = floor(decay_start * T), then base * max((T - t) / (T - D), 0)
///   constant      base
/// times min(1, (t + 1) / warmup_steps). At t = T all hold their end value (the Python reference's
/// cosine would rise again beyond it).
double learning_rate(const ScheduleConfig& schedule, double base, Index step);

/// lambda(t), T = horizon: linear is lambda * min(1, t / T); delayed_linear is 0 while t < q T and
/// then lambda * min(1, (t - q T) / (T - q T)). Values below 1e-9 are 0: no penalty is computed.
double sparsity_weight(const LossConfig& loss, Index horizon, Index step);

}  // namespace clt
