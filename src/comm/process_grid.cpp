#include "clt/comm/process_grid.hpp"

namespace clt {

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
