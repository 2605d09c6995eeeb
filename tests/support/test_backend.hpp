// The backend that a test program runs on: that of the environment variable CLT_TEST_BACKEND.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include "clt/backend/backend.hpp"

namespace clt::test {

inline std::string test_backend_name() {
    const char* name = std::getenv("CLT_TEST_BACKEND");
    return name == nullptr ? "cpu" : name;
}

/// In float32, which the tolerances are for. Collective over `world`.
inline std::unique_ptr<Backend> make_test_backend(const Communicator& world,
                                                  const std::string& name = test_backend_name()) {
    return make_backend(name, world, "float32");
}

}  // namespace clt::test
