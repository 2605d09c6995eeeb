#include "clt/memory/available.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "clt/base/error.hpp"

namespace clt {
namespace {

/// The number after `key` at the start of a line of a "key value" file.
std::optional<Index> value_of(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string name;
        Index value = 0;
        if (words >> name && name == key && words >> value) return value;
    }
    return std::nullopt;
}

/// The number that is all a file holds; nothing for "max" or no file.
std::optional<Index> number_in(const std::string& path) {
    std::ifstream file(path);
    Index value = 0;
    if (file >> value) return value;
    return std::nullopt;
}

struct CgroupNames {
    const char* limit;
    const char* usage;
    const char* droppable;  // in memory.stat
};
constexpr CgroupNames version1{"memory.limit_in_bytes", "memory.usage_in_bytes",
                               "total_inactive_file"};
constexpr CgroupNames version2{"memory.max", "memory.current", "inactive_file"};

/// What the cgroup at `mount` + `group` and those above it leave.
Index cgroup_bytes(const std::string& mount, std::string group, const CgroupNames& names) {
    Index least = std::numeric_limits<Index>::max();
    for (;;) {
        const std::string folder = mount + group + "/";
        const auto limit = number_in(folder + names.limit);
        const auto usage = number_in(folder + names.usage);
        if (limit && usage) {
            const Index droppable = value_of(folder + "memory.stat", names.droppable).value_or(0);
            least = std::min(least, std::max<Index>(0, *limit - *usage + droppable));
        }
        if (group.empty() || group == "/") return least;
        group.resize(group.rfind('/'));
    }
}

}  // namespace

Index available_host_bytes(const std::string& root) {
    const auto kilobytes = value_of(root + "/proc/meminfo", "MemAvailable:");
    if (!kilobytes) library_error("reading /proc/meminfo", 0, "no MemAvailable");
    Index bytes = *kilobytes * 1024;

    std::ifstream groups(root + "/proc/self/cgroup");  // lines "id:controllers:path"
    for (std::string line; std::getline(groups, line);) {
        const std::size_t first = line.find(':');
        const std::size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);
        if (controllers.empty())
            bytes = std::min(bytes, cgroup_bytes(root + "/sys/fs/cgroup", group, version2));
        else if (("," + controllers + ",").find(",memory,") != std::string::npos)
            bytes = std::min(bytes, cgroup_bytes(root + "/sys/fs/cgroup/memory", group, version1));
    }
    return bytes;
}

}  // namespace clt
