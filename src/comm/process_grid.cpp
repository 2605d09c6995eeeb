#include "clt/comm/process_grid.hpp"

#include <algorithm>

namespace clt {

namespace {
// Beyond this no job runs, and the product of two still fits in 64 bits.
constexpr Index most_ranks = 1 << 30;
}  // namespace

ProcessGrid::ProcessGrid(const Communicator& world, const GridConfig& config)
    : ProcessGrid(
          world, static_cast<int>(std::min(config.data, most_ranks)),
          static_cast<int>(std::min(
              config.feature > 0 ? config.feature : std::max<Index>(world.size() / config.data, 1),
              most_ranks))) {}

ProcessGrid::ProcessGrid(const Communicator& world, int data, int feature) {
    if (data < 1 || feature < 1 || static_cast<long long>(data) * feature != world.size())
        user_error(
            "[grid] data = {} times feature = {} is {}, but the job runs on {} rank{}: they must "
            "be equal",
            data, feature, static_cast<long long>(data) * feature, world.size(),
            world.size() == 1 ? "" : "s");
    all_ = world.duplicate();
    data_ = world.split(world.rank() % feature, world.rank());
    feature_ = world.split(world.rank() / feature, world.rank());
}

}  // namespace clt
