// A folder of a test's own, removed when the test ends.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "clt/comm/communicator.hpp"

namespace clt::test {

class Scratch {
  public:
    Scratch() : owner_(true) { make(); }
    /// One folder for all ranks. Collective, as its end.
    explicit Scratch(const Communicator& world) : world_(&world), owner_(world.rank() == 0) {
        if (owner_) make();
        path_ = world.broadcast(path_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        if (world_ != nullptr) world_->barrier();
        std::error_code ignored;
        if (owner_) std::filesystem::remove_all(path_, ignored);
    }

    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    void make() {
        std::string pattern = (std::filesystem::temp_directory_path() / "clt-test-XXXXXX").string();
        if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no scratch folder");
        path_ = pattern;
    }

    const Communicator* world_ = nullptr;
    bool owner_;
    std::string path_;
};

/// The message of the exception of type E that `work` must throw.
template <class E, class Work>
std::string message_of(Work&& work) {
    try {
        work();
    } catch (const E& e) {
        return e.what();
    } catch (const std::exception& e) {
        ADD_FAILURE() << "another exception: " << e.what();
        return {};
    }
    ADD_FAILURE() << "nothing was thrown";
    return {};
}

}  // namespace clt::test
