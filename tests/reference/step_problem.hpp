// Random problems for the step's tests, and the step followed by the oracle.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "reference/grid_step.hpp"

namespace clt::reference {

/// An activation function with its switches, as the step's code tells them apart.
struct Kind {
    std::string name;
    std::string activation;
    double k = 0;
    std::string ranking = "raw";
    bool keep_negative = false;
    bool dense = false;  // relu, jumprelu: more than a tenth of the entries are active
};
const std::vector<Kind>& kinds();
void PrintTo(const Kind& kind, std::ostream* out);  // for gtest

/// Parameters, batches and switches; every number is a float.
struct Problem {
    RunSetup setup;
    Parameters initial;
    std::vector<Batch> batches;  // one a step
    std::optional<bool> dense;   // which path the step should take
    double lambda = 0;
    double learning_rate = 0.02;
};

/// Adam's epsilon is 1e-3: then an error of a gradient moves a parameter by at most lr / 1e-3 times
/// it, while at 1e-8 Adam turns the sign of a rounding error into a full step (the golden files
/// have that).
Problem random_problem(const Kind& kind, const Shape& shape, Index tokens, Index steps,
                       unsigned seed);

Batch random_batch(const Shape& shape, Index tokens, unsigned seed);

/// Trains the step on this grid and the oracle side by side and compares losses, selections,
/// gradient norms, and after the last step parameters and moments. Collective over world.
void expect_follows_oracle(const Communicator& world, int data, int feature,
                           const Problem& problem);

}  // namespace clt::reference
