// How activations lie in HDF5: names and element types (reference-spec 1.2), shared by reader and
// writer.
#pragma once

#include <array>
#include <string>

#include "clt/base/float16.hpp"
#include "clt/io/hdf5.hpp"

namespace clt {

inline constexpr std::array<const char*, 2> dataset_parts{"inputs", "targets"};
inline constexpr std::string_view layer_group_prefix = "layer_";

inline std::string layer_dataset_name(Index layer, std::size_t part) {
    return fmt::format("{}{}/{}", layer_group_prefix, layer, dataset_parts[part]);
}

constexpr H5Type storage_of(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return H5Type::float32;
        case DType::float16:
            return H5Type::float16;
        case DType::bfloat16:
            break;
    }
    return H5Type::uint16;  // the bits: HDF5 1.10 converts a 16-bit float of its own with loss
}

}  // namespace clt
