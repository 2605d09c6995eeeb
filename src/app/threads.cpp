#include "app/threads.hpp"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "clt/base/error.hpp"

namespace clt {
namespace {

/// Which core a processor (hardware thread) belongs to, as the kernel writes its list of siblings.
std::string core_of(int processor) {
    std::ifstream file(
        fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", processor));
    std::string siblings;
    std::getline(file, siblings);
    return siblings.empty() ? std::to_string(processor) : siblings;
}

}  // namespace

int threads_per_rank(const Communicator& world) {
    const Communicator host = world.split_by_host();
    cpu_set_t own;
    CPU_ZERO(&own);
    // Fails on hosts with more than 1024 processors; OMP_NUM_THREADS then says it.
    if (sched_getaffinity(0, sizeof(own), &own) != 0) CPU_SET(0, &own);
    const std::vector<cpu_set_t> masks = host.all_gather(own);

    int threads = 0;
    if (const char* wanted = std::getenv("OMP_NUM_THREADS")) threads = std::atoi(wanted);
    if (threads > 0) return threads;

    std::map<std::string, double> share_of_core;
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (!CPU_ISSET(processor, &own)) continue;
        const auto sharers = std::count_if(masks.begin(), masks.end(), [&](const cpu_set_t& mask) {
            return CPU_ISSET(processor, &mask);
        });
        double& share = share_of_core[core_of(processor)];
        share = std::max(share, 1.0 / static_cast<double>(sharers));
    }
    double cores = 0;
    for (const auto& [core, share] : share_of_core) cores += share;
    return std::max(1, static_cast<int>(std::floor(cores + 1e-6)));  // 1e-6: sums of 1/n
}

}  // namespace clt
