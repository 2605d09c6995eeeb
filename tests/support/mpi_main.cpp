// gtest's main for tests on several ranks: each rank prints its own failures at once, prefixed with
// [rank r]; rank 0 alone prints progress; a test fails everywhere when it failed anywhere. The
// harness talks on its own communicator.
#include <gtest/gtest.h>

#include <cstdio>

#include "clt/comm/communicator.hpp"
#include "support/test_backend.hpp"

namespace {

/// Why the backend of CLT_TEST_BACKEND cannot run here; empty when it can. Collective.
std::string why_skipped(const clt::Communicator& world) {
    if (clt::test::test_backend_name() == "cpu") return {};
    try {
        clt::test::make_test_backend(world);
    } catch (const clt::UserError& e) {
        const std::string words = e.what();
        if (words.find("no CUDA device") == std::string::npos) throw;
        return words;
    }
    return {};
}

class MpiListener final : public testing::EmptyTestEventListener {
  public:
    explicit MpiListener(const clt::Communicator& world) : world_(world.duplicate()) {}

    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (result.failed() && world_.rank() != 0)
            std::fprintf(stderr, "[rank %d] %s:%d: %s\n", world_.rank(),
                         result.file_name() ? result.file_name() : "?", result.line_number(),
                         result.summary());
    }
    void OnTestEnd(const testing::TestInfo& info) override {
        const bool failed_here = info.result()->Failed();
        const bool failed_anywhere = !world_.agree(!failed_here);
        if (failed_anywhere && !failed_here) ADD_FAILURE() << "failed on another rank";
    }

  private:
    clt::Communicator world_;
};

}  // namespace

int main(int argc, char** argv) {
    clt::MpiSession session(argc, argv);
    testing::InitGoogleTest(&argc, argv);
    int result = 1;
    {
        const clt::Communicator world = clt::Communicator::world();
        // CTest shows these words as skipped.
        if (const std::string why = why_skipped(world); !why.empty()) {
            if (world.rank() == 0) std::printf("[  SKIPPED ] 1 program: %s\n", why.c_str());
            return 0;
        }
        auto& listeners = testing::UnitTest::GetInstance()->listeners();
        if (world.rank() != 0) delete listeners.Release(listeners.default_result_printer());
        if (world.size() > 1) listeners.Append(new MpiListener(world));
        result = world.agree(RUN_ALL_TESTS() == 0) ? 0 : 1;
    }
    return result;
}
