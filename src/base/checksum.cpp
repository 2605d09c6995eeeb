#include "clt/base/checksum.hpp"

#include <fmt/format.h>

#include <bit>
#include <cstring>

namespace clt {

std::uint64_t checksum_of(const float* values, Index count, Index first_id) {
    std::uint64_t sum = 0;
    for (Index i = 0; i < count; ++i)
        sum +=
            mix(static_cast<std::uint64_t>(first_id + i), std::bit_cast<std::uint32_t>(values[i]));
    return sum;
}

std::uint64_t checksum_of(const Index* values, Index count, Index first_id) {
    std::uint64_t sum = 0;
    for (Index i = 0; i < count; ++i)
        sum += mix(static_cast<std::uint64_t>(first_id + i), static_cast<std::uint64_t>(values[i]));
    return sum;
}

std::uint64_t checksum_of(std::span<const std::byte> bytes, Index first_word) {
    constexpr std::size_t word_bytes = sizeof(std::uint64_t);
    auto id = static_cast<std::uint64_t>(first_word);
    std::uint64_t sum = 0;
    std::size_t at = 0;
    for (; at + word_bytes <= bytes.size(); at += word_bytes) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data() + at, word_bytes);
        sum += mix(id++, word);
    }
    if (const std::size_t rest = bytes.size() - at; rest > 0) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data() + at, rest);
        sum += mix(mix(id, rest), word);
    }
    return sum;
}

std::uint64_t checksum_of(std::string_view text) {
    return checksum_of(std::as_bytes(std::span(text)));
}

std::string hexadecimal(std::uint64_t value) {
    return fmt::format("{:016x}", value);
}

std::string fingerprint_of(std::string_view text) {
    Fingerprint fingerprint;
    fingerprint.add(text);
    return fingerprint.text();
}

void Fingerprint::add(std::string_view text) {
    for (const char byte : text)
        hash_ = (hash_ ^ static_cast<unsigned char>(byte)) * 0x100000001B3U;
}

}  // namespace clt
