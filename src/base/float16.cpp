#include "clt/base/float16.hpp"

#include <cstring>

namespace clt {

std::string_view name_of(DType type) {
    switch (type) {
        case DType::float32:
            return "float32";
        case DType::float16:
            return "float16";
        case DType::bfloat16:
            return "bfloat16";
    }
    return "?";
}

std::optional<DType> dtype_from_name(std::string_view name) {
    for (const DType type : {DType::float32, DType::float16, DType::bfloat16})
        if (name == name_of(type)) return type;
    return std::nullopt;
}

void to_float(DType type, const void* from, float* to, Index n) {
    if (type == DType::float32) {
        std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
        return;
    }
    const auto* bits = static_cast<const std::uint16_t*>(from);
    if (type == DType::float16) {
        for (Index i = 0; i < n; ++i) to[i] = float16_to_float(bits[i]);
    } else {
        for (Index i = 0; i < n; ++i) to[i] = bfloat16_to_float(bits[i]);
    }
}

void from_float(DType type, const float* from, void* to, Index n) {
    if (type == DType::float32) {
        std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
        return;
    }
    auto* bits = static_cast<std::uint16_t*>(to);
    if (type == DType::float16) {
        for (Index i = 0; i < n; ++i) bits[i] = float_to_float16(from[i]);
    } else {
        for (Index i = 0; i < n; ++i) bits[i] = float_to_bfloat16(from[i]);
    }
}

}  // namespace clt
