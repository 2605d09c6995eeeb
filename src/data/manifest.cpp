#include "data/manifest.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>

#include "clt/base/error.hpp"

namespace clt {
namespace {

static_assert(std::endian::native == std::endian::little, "index.bin is little endian");

struct Record {
    std::int32_t chunk;
    std::int32_t rows;
    std::int64_t first_token;
};
static_assert(sizeof(Record) == 16);

template <class T>
T element(const std::string& bytes, std::size_t i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
}

std::vector<ManifestEntry> non_empty(const std::map<Index, Index>& rows_of) {
    std::vector<ManifestEntry> chunks;
    for (const auto& [chunk, rows] : rows_of)
        if (rows > 0) chunks.push_back({chunk, rows});
    return chunks;
}

}  // namespace

std::vector<ManifestEntry> parse_manifest(const std::string& bytes, Index total_tokens,
                                          const std::string& path) {
    if (bytes.size() % 8 != 0)
        user_error("{}: {} bytes, expected a multiple of 8 (legacy rows) or 16 (chunk records)",
                   path, bytes.size());
    Index total = 0;
    if (bytes.size() % sizeof(Record) == 0) {
        std::map<Index, Index> rows_of;
        bool plausible = true;
        for (std::size_t i = 0; i < bytes.size() / sizeof(Record); ++i) {
            const auto record = element<Record>(bytes, i);
            plausible = plausible && record.chunk >= 0 && record.rows >= 0;
            rows_of[record.chunk] += record.rows;
            total += record.rows;
        }
        if (plausible && total == total_tokens) return non_empty(rows_of);
    }
    const auto legacy_rows = static_cast<Index>(bytes.size() / 8);
    if (legacy_rows != total_tokens)
        user_error(
            "{}: lists {} tokens as chunk records or {} as legacy rows, but metadata.json says "
            "total_tokens = {}",
            path, total, legacy_rows, total_tokens);
    std::map<Index, Index> rows_of;
    for (std::size_t i = 0; i < bytes.size() / 8; ++i)
        ++rows_of[element<std::uint32_t>(bytes, 2 * i)];
    return non_empty(rows_of);
}

std::string format_manifest(const std::vector<ManifestEntry>& chunks) {
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    std::string bytes;
    Index first_token = 0;
    for (const auto& [chunk, rows] : chunks) {
        if (chunk > most || rows > most)
            user_error("chunk {} has {} rows: index.bin counts both in 32 bits (at most {})", chunk,
                       rows, most);
        const Record record{static_cast<std::int32_t>(chunk), static_cast<std::int32_t>(rows),
                            first_token};
        bytes.append(reinterpret_cast<const char*>(&record), sizeof record);
        first_token += rows;
    }
    return bytes;
}

}  // namespace clt
