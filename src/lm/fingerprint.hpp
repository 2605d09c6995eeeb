// A short name for a file's content. It tells files apart, it does not protect against forgery.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "clt/base/error.hpp"

namespace clt {

/// 16 hexadecimal digits: FNV-1a, 64 bits. Source: Fowler, Noll, Vo, draft-eastlake-fnv.
inline std::string fingerprint_of(std::string_view bytes) {
    std::uint64_t hash = 0xCBF29CE484222325U;
    for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3U;
    return fmt::format("{:016x}", hash);
}

}  // namespace clt
