// The background thread that runs tasks in order.
#include "clt/base/worker.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>
#include <vector>

namespace clt {
namespace {

TEST(WorkerTest, RunsTasksInTheOrderGivenAndFinishesThem) {
    std::vector<int> ran;
    Worker worker;
    for (int i = 0; i < 100; ++i) worker.give([&ran, i] { ran.push_back(i); });
    worker.finish();
    std::vector<int> expected(100);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(ran, expected);
    worker.finish();  // nothing left
    worker.call([&ran] { ran.clear(); });
    EXPECT_TRUE(ran.empty());
}

TEST(WorkerTest, AFailureGoesToWhoeverWaitsForThatTask) {
    Worker worker;
    bool later = false;
    const auto failed = worker.give([] { throw std::runtime_error("the first"); });
    const auto behind = worker.give([&later] { later = true; });
    behind.get();
    EXPECT_TRUE(later);
    EXPECT_THROW(failed.get(), std::runtime_error);
    EXPECT_THROW(worker.call([] { throw std::logic_error("the third"); }), std::logic_error);
}

}  // namespace
}  // namespace clt
