// The production step against the oracle on every grid of the ranks given: every activation, loss
// and switch, and sizes that leave shards, slices and vector tails empty or odd.
#include <gtest/gtest.h>

#include <array>

#include "reference/step_problem.hpp"

namespace clt::reference {
namespace {

struct LossCase {
    std::string name;
    double sparsity;
    std::string reduction;
    double preactivation;
};
const std::vector<LossCase> losses = {{"reconstruction", 0, "mean", 0},
                                      {"sparsity_mean", 0.3, "mean", 0},
                                      {"sparsity_sum", 0.02, "sum", 0},
                                      {"preactivation", 0, "mean", 0.7},
                                      {"all", 0.3, "mean", 0.7}};

void set_loss(const LossCase& loss, Problem& problem) {
    problem.setup.loss.sparsity = loss.sparsity;
    problem.setup.loss.sparsity_scale = 0.8;
    problem.setup.loss.sparsity_reduction = loss.reduction;
    problem.setup.loss.preactivation = loss.preactivation;
    problem.lambda = loss.sparsity;
}

/// The switches that are independent of activation and loss, one bit or digit each.
void set_switches(unsigned number, Problem& problem) {
    OptimizerConfig& optimizer = problem.setup.optimizer;
    optimizer.gradient_clip = std::array{0.0, 0.3, 1e6}[number % 3];  // off, acting, idle
    optimizer.reference_biases = number / 3 % 2 == 1;
    optimizer.kind = number / 6 % 2 == 1 ? "adam" : "adamw";
    optimizer.weight_decay = 0.1;
    if (number / 12 % 2 == 1) {
        Vector& scale = problem.setup.error_scale;
        scale = problem.setup.scale();
        for (std::size_t i = 0; i < scale.size(); ++i)
            scale[i] = 0.5 + 0.25 * static_cast<double>(i % 7);
    }
}

class EveryKind : public testing::TestWithParam<Kind> {
  protected:
    Communicator world = Communicator::world();

    void expect_follows_on_every_grid(const Problem& problem) const {
        for (const auto& [data, feature] : grids_of(world.size()))
            expect_follows_oracle(world, data, feature, problem);
    }
};

// All losses with changing settings of the switches: on one rank each kind meets all 24 of them, on
// several a spread (5 and 24 share no factor), for a step costs some fifty collectives.
TEST_P(EveryKind, FollowsTheOracleThroughEveryLossAndSwitch) {
    const bool alone = world.size() == 1;
    unsigned switches = 0;
    for (const LossCase& loss : losses)
        for (int repeat = 0; repeat < (alone ? 5 : 2); ++repeat, switches += alone ? 1 : 5) {
            SCOPED_TRACE(fmt::format("{}, switches {}", loss.name, switches));
            Problem problem = random_problem(GetParam(), {3, 7, 13}, 11, 3, 100 + switches);
            problem.dense = GetParam().dense;
            set_loss(loss, problem);
            set_switches(switches, problem);
            expect_follows_on_every_grid(problem);
        }
}

TEST_P(EveryKind, FollowsTheOracleAtEverySize) {
    struct Size {
        Index tokens, layers, features, d_model;
    };
    unsigned seed = 300;
    for (const Size& size :
         {Size{1, 1, 1, 1}, Size{2, 1, 3, 1}, Size{1, 2, 5, 3}, Size{2, 3, 2, 2},
          Size{31, 2, 33, 5}, Size{32, 2, 32, 32}, Size{33, 3, 31, 7}, Size{5, 4, 1, 33}}) {
        Problem problem = random_problem(GetParam(), {size.layers, size.d_model, size.features},
                                         size.tokens, 2, ++seed);
        set_loss(losses.back(), problem);
        set_switches(13, problem);
        expect_follows_on_every_grid(problem);
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryKind, testing::ValuesIn(kinds()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace clt::reference
