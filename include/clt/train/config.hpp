// A train job: the tables that belong to the trainer, and the whole.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "clt/base/fields.hpp"
#include "clt/base/types.hpp"
#include "clt/comm/config.hpp"
#include "clt/data/config.hpp"
#include "clt/model/config.hpp"

namespace clt {

struct OptimizerConfig {
    std::string kind = "adamw";
    double learning_rate = 1e-3;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0.01;
    double gradient_clip = 0;
    bool reference_biases = false;

    template <class V>
    void fields(V& v) {
        v("kind", kind, rule::one_of({"adamw", "adam"}),
          "adamw decays weights apart from the gradient; adam never does");
        v("learning_rate", learning_rate, rule::float32(), "Base learning rate");
        v("beta1", beta1, rule::between(0, 0.999999), "Decay of the first moment");
        v("beta2", beta2, rule::between(0, 0.999999999), "Decay of the second moment");
        v("epsilon", epsilon, rule::float32(), "Added to the root of the second moment");
        v("weight_decay", weight_decay, rule::float32_or_zero(),
          "adamw: decay of encoder and decoder weights");
        v("gradient_clip", gradient_clip, rule::float32_or_zero(),
          "Largest global L2 norm of the gradient; 0: no clipping");
        v("reference_biases", reference_biases, rule::any(),
          "As the Python reference: a decoder bias a (source, target) pair, so a target's summed "
          "bias moves t+1 times as "
          "far, and weight decay on biases and thresholds too");
    }
};

struct ScheduleConfig {
    Index steps = 0;
    std::string kind = "linear";
    double start_factor = 1.0;
    double end_factor = 0.1;
    double minimum = 0.0;
    double decay_start = 0.8;
    Index warmup_steps = 0;
    Index horizon = 0;

    /// Steps that the shapes of learning rate and sparsity are made for.
    Index total() const { return horizon > 0 ? horizon : steps; }

    template <class V>
    void fields(V& v) {
        v("steps", steps, rule::required() | rule::count() | rule::free(),
          "Training steps; a run that goes on may have more");
        v("kind", kind, rule::one_of({"linear", "cosine", "linear_final", "constant"}),
          "Shape of the learning rate");
        v("start_factor", start_factor, rule::float32(), "linear: factor at the first step");
        v("end_factor", end_factor, rule::float32_or_zero(), "linear: factor after the last step");
        v("minimum", minimum, rule::float32_or_zero(), "cosine: learning rate after the last step");
        v("decay_start", decay_start, rule::between(0, 1),
          "linear_final: fraction of steps before the fall to 0");
        v("warmup_steps", warmup_steps, rule::count(0),
          "Steps of linear warm-up, multiplied onto the shape");
        v("horizon", horizon, rule::count(0) | rule::free(),
          "Steps that the shapes of learning rate and sparsity are made for, which then do not "
          "depend on the number of steps; later steps hold their end value; 0: steps");
    }
};

struct EvaluationConfig {
    Index interval = 1000;
    Index tokens = 65536;

    template <class V>
    void fields(V& v) {
        v("interval", interval, rule::at_least(0) | rule::execution(),
          "Steps between evaluations on held-out tokens; 0: at the end only");
        v("tokens", tokens, rule::at_least(0) | rule::execution(),
          "Held-out tokens of an evaluation; 0: all");
    }
};

struct CheckpointConfig {
    Index interval = 1000;
    bool asynchronous = true;
    std::string on_full = "continue";
    Index keep = 3;
    bool keep_best = true;

    template <class V>
    void fields(V& v) {
        v("interval", interval, rule::at_least(0) | rule::execution(),
          "Steps between checkpoints; 0: at the end only");
        v("asynchronous", asynchronous, rule::execution(),
          "Training goes on while a checkpoint is written, from a copy in host memory");
        v("on_full", on_full, rule::one_of({"continue", "stop"}) | rule::execution(),
          "When the disk has no room for a checkpoint: training goes on until the next is due, or "
          "the run ends; the old ones stay either way. The last one of a run must find room");
        v("keep", keep, rule::at_least(1) | rule::execution(), "Newest checkpoints kept");
        v("keep_best", keep_best, rule::execution(),
          "Also keep the one with the lowest held-out NMSE");
    }
};

struct LogConfig {
    Index interval = 10;
    Index dead_window = 1000;

    template <class V>
    void fields(V& v) {
        v("interval", interval, rule::positive() | rule::execution(),
          "Steps between lines of metrics.jsonl and the live line");
        v("dead_window", dead_window, rule::positive() | rule::execution(),
          "A feature silent for more steps than this counts as dead");
    }
};

struct RunConfig : WatchConfig {
    std::string on_nonfinite = "stop";
    Index nonfinite_limit = 20;

    template <class V>
    void fields(V& v) {
        WatchConfig::fields(v);
        v("on_nonfinite", on_nonfinite, rule::one_of({"stop", "skip", "rollback"}) | rule::free(),
          "When a number is not finite. stop: the run ends (exit code 2) and says what it was; the "
          "checkpoints stay as they are. skip: a step whose loss or gradient norm is not finite "
          "changes nothing, and the next batch is taken; a parameter that an update has broken "
          "ends the run all the same, as that cannot be undone. rollback: the run goes back to its "
          "last checkpoint and on with another order of batches");
        v("nonfinite_limit", nonfinite_limit, rule::at_least(1) | rule::free(),
          "skip: so many steps in a row are a diverged run, which ends; rollback: the run goes "
          "back "
          "at most so many times");
    }
};

struct TrainJob {
    JobConfig job;
    GridConfig grid;
    DataConfig data;
    ModelConfig model;
    LossConfig loss;
    OptimizerConfig optimizer;
    ScheduleConfig schedule;
    EvaluationConfig evaluation;
    CheckpointConfig checkpoint;
    LogConfig log;
    RunConfig run;

    template <class V>
    void tables(V& v) {
        v("job", job, "What the job is and where its results go");
        v("grid", grid, "Ranks: data replicas x feature shards");
        v("data", data, "Activations, batches, normalisation");
        v("model", model, "The transcoder");
        v("loss", loss, "Penalties beside the reconstruction loss");
        v("optimizer", optimizer, "Adam and AdamW");
        v("schedule", schedule, "Number of steps and the learning rate's shape");
        v("evaluation", evaluation, "Held-out evaluation during training");
        v("checkpoint", checkpoint, "What is kept on disk");
        v("log", log, "metrics.jsonl and the live line");
        v("run", run, "What a run does when something goes wrong");
    }

    /// Calls report("table.key", "what is wrong") for values that contradict each other.
    template <class Report>
    void conflicts(Report& report) const {
        const bool per_token = model.activation == "topk";
        if ((per_token || model.activation == "batchtopk") && !(model.k > 0))
            report("model.k", fmt::format("{} needs k above 0", model.activation));
        if (per_token && model.k > 1 && model.k != std::floor(model.k))
            report("model.k",
                   fmt::format("topk needs a whole number or a fraction below 1, not {}", model.k));
        if (schedule.warmup_steps > schedule.total())
            report("schedule.warmup_steps",
                   fmt::format("{} steps of warm-up are more than the {} that the schedule has",
                               schedule.warmup_steps, schedule.total()));
        const double decay = optimizer.learning_rate * optimizer.weight_decay;
        if (optimizer.kind == "adamw" && decay > 1)
            report("optimizer.weight_decay",
                   fmt::format("a step takes learning_rate * weight_decay of a weight, which is {} "
                               "and would be more than all of it",
                               decay));
        if (optimizer.gradient_clip > 0 && optimizer.gradient_clip < 1e-37)
            report("optimizer.gradient_clip",
                   fmt::format("{} is 0 in float32, so nothing would be learned; 0 means no "
                               "clipping",
                               optimizer.gradient_clip));
        if (data.holdout_fraction > 0 && !data.evaluation_path.empty())
            report("data.evaluation_path",
                   "stands in place of data.holdout_fraction; give only one of them");
    }
};

}  // namespace clt
