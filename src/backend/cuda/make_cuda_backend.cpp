#include "backend/cuda/make_cuda_backend.hpp"

#include <unistd.h>

#include <algorithm>

#include "backend/cuda/cuda_backend.hpp"

namespace clt {
namespace {

cuda::Precision precision_named(const std::string& name) {
    if (name == "auto" || name == "bfloat16") return cuda::Precision::bfloat16;
    if (name == "float32") return cuda::Precision::float32;
    if (name == "tf32") return cuda::Precision::tf32;
    user_error("precision = \"{}\": expected \"auto\", \"float32\", \"tf32\" or \"bfloat16\"",
               name);
}

std::string host_name() {
    char name[256] = "?";
    gethostname(name, sizeof(name) - 1);
    return name;
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const Communicator& world,
                                           const std::string& precision) {
    const cuda::Precision chosen = precision_named(precision);
    const Communicator host = world.split_by_host();
    int device = 0;
    std::array<char, 16> uuid{};
    world.together([&] {
        const cuda::Devices devices = cuda::devices();
        if (devices.count == 0)
            user_error("backend = \"cuda\": no CUDA device on host {} (driver: {})", host_name(),
                       devices.words);
        device = host.rank() % devices.count;
        cuda::use_device(device);
        uuid = cuda::device_limits().uuid;
    });
    // By identity, not by number: a batch system may show each rank a device 0 of its own.
    const auto used = host.all_gather(uuid);
    const Index ranks_on_device =
        world.all_reduce_max(Index{std::count(used.begin(), used.end(), uuid)});

    std::unique_ptr<Backend> backend;
    world.together(
        [&] { backend = std::make_unique<CudaBackend>(device, ranks_on_device, chosen); });
    return backend;
}

}  // namespace clt
