// Checksums of what lies on disk. They tell damage and another content apart; they do not protect
// against forgery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "clt/base/types.hpp"

namespace clt {

/// Mixes bits with the number of the element they belong to. For a given id every change of bits
/// changes the result. Constants: the golden ratio, and those of Stafford's variant 13 of the
/// SplitMix64 finaliser.
constexpr std::uint64_t mix(std::uint64_t id, std::uint64_t bits) {
    std::uint64_t x = bits + id * 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31);
}

/// Checksum of elements first_id, first_id + 1, ... of an array: the sum of mix(id, bits), so parts
/// may be summed over ranks in any order. A single changed element always changes it.
std::uint64_t checksum_of(const float* values, Index count, Index first_id);
std::uint64_t checksum_of(const Index* values, Index count, Index first_id);

/// The same for bytes, as 8-byte words from word first_word on; a last part of a word is filled up
/// with zeros, and their number counts too. Parts that begin at whole words may be summed.
std::uint64_t checksum_of(std::span<const std::byte> bytes, Index first_word = 0);
std::uint64_t checksum_of(std::string_view text);

/// 16 hexadecimal digits.
std::string hexadecimal(std::uint64_t value);

/// A short name for a file's content: 16 hexadecimal digits, FNV-1a, 64 bits. For small texts; a
/// byte at a time. Source: Fowler, Noll, Vo, draft-eastlake-fnv.
std::string fingerprint_of(std::string_view text);

/// The same, of a text that comes in parts.
class Fingerprint {
  public:
    void add(std::string_view text);
    std::string text() const { return hexadecimal(hash_); }

  private:
    std::uint64_t hash_ = 0xCBF29CE484222325U;
};

}  // namespace clt
