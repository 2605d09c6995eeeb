// Reads float32 arrays of an .npz file (a zip of .npy, stored or deflated).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "clt/base/types.hpp"

namespace clt::test {

struct NpyArray {
    std::vector<Index> shape;
    std::vector<float> values;  // C order
};

/// By name, without ".npy". Throws std::runtime_error on anything but little-endian float32.
std::map<std::string, NpyArray> read_npz(const std::string& path);

}  // namespace clt::test
