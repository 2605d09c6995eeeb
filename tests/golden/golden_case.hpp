// One golden file: what the Python reference computed, in the oracle's terms.
// data/README.md lists what a file holds.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "reference/grid_step.hpp"

namespace clt::reference {

struct GoldenStep {
    Batch batch;
    double lambda = 0;
    Losses losses;
    double gradient_norm = -1;  // before clipping; negative: not recorded
};

struct GoldenCase {
    std::string path;
    RunSetup setup;
    double learning_rate = 0;
    std::vector<GoldenStep> steps;
    Parameters initial;
    nlohmann::json metrics;  // kind "metrics": the evaluator's numbers

    // Absent from a metrics file.
    std::optional<Parameters> gradient;  // of the first step, before clipping
    std::optional<Parameters> trained;   // after the last step; a target's biases summed up
    Vector activation;                   // [B, L, F] of the first step
    Vector reconstruction;               // [B, L, d] of the first step
};

/// Why this file cannot be run yet, naming the missing feature; empty when it can.
std::string missing_feature(const std::string& path);

/// Whether it holds the evaluator's numbers on one batch instead of training steps.
bool is_metrics(const std::string& path);

GoldenCase read_golden(const std::string& path);

/// The .h5 files of CLT_GOLDEN_DIR, or of tests/golden/data when that is unset; sorted.
std::vector<std::string> golden_files();

}  // namespace clt::reference
