// Twenty whole steps on the CUDA backend, run by the emulator, against the CPU backend: every
// activation function, with penalties and clipping, in float32.
#include <gtest/gtest.h>

#include <cmath>

#include "reference/step_problem.hpp"

namespace clt::reference {
namespace {

constexpr Index steps = 20;

class Backends : public testing::TestWithParam<Kind> {};

TEST_P(Backends, HaveTheSameLossesForTwentySteps) {
    const Communicator world = Communicator::world();
    // Small: the emulator runs every thread. The kernels' own tests have the sizes.
    Problem problem = random_problem(GetParam(), {2, 20, 24}, 33, steps, 17);
    problem.setup.loss.sparsity = 0.3;
    problem.setup.loss.sparsity_scale = 0.8;
    problem.setup.loss.preactivation = 0.1;
    problem.setup.optimizer.gradient_clip = 0.5;
    problem.lambda = 0.3;
    for (const auto& [data, feature] : grids_of(world.size())) {
        GridStep cpu(world, data, feature, problem.setup, 1, "cpu");
        GridStep cuda(world, data, feature, problem.setup, 1, "cuda");
        cpu.set(problem.initial);
        cuda.set(problem.initial);
        double first = 0;
        double last = 0;
        for (Index step = 0; step < steps; ++step) {
            const Batch& batch = problem.batches[static_cast<std::size_t>(step)];
            const StepResult expected = cpu.train(batch, problem.lambda, problem.learning_rate);
            const StepResult got = cuda.train(batch, problem.lambda, problem.learning_rate);
            const double allowed = 1e-5 * expected.total;
            EXPECT_TRUE(std::abs(got.total - expected.total) <= allowed)
                << "step " << step << ": " << got.total << ", cpu " << expected.total;
            EXPECT_TRUE(std::abs(got.sparsity - expected.sparsity) <= allowed) << "step " << step;
            EXPECT_TRUE(std::abs(got.preactivation - expected.preactivation) <= allowed)
                << "step " << step;
            EXPECT_TRUE(std::abs(got.gradient_norm / expected.gradient_norm - 1) <= 1e-4)
                << "step " << step;
            EXPECT_EQ(got.l0, expected.l0) << "step " << step;
            EXPECT_EQ(got.dense, expected.dense) << "step " << step;
            if (step == 0) first = expected.total;
            last = expected.total;
        }
        EXPECT_LT(last, first);  // the steps do train
    }
}

// One of each path through the selection and the step.
std::vector<Kind> some_kinds() {
    std::vector<Kind> some;
    for (const Kind& kind : kinds())
        for (const char* name : {"relu_dense", "jumprelu_dense", "jumprelu_sparse",
                                 "batchtopk_part", "batchtopk_zscore_negative", "topk"})
            if (kind.name == name) some.push_back(kind);
    return some;
}
INSTANTIATE_TEST_SUITE_P(Kinds, Backends, testing::ValuesIn(some_kinds()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace clt::reference
