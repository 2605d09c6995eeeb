// index.bin in both layouts (reference-cases C18).
#include <gtest/gtest.h>

#include <cstring>

#include "clt/base/error.hpp"
#include "data/manifest.hpp"

namespace clt {
namespace {

std::string legacy(const std::vector<std::pair<std::uint32_t, std::uint32_t>>& rows) {
    std::string bytes(rows.size() * 8, '\0');
    for (std::size_t i = 0; i < rows.size(); ++i) {
        std::memcpy(bytes.data() + 8 * i, &rows[i].first, 4);
        std::memcpy(bytes.data() + 8 * i + 4, &rows[i].second, 4);
    }
    return bytes;
}

TEST(Manifest, OneChunkOfTenRowsIsTheReferencesBytes) {
    const std::string bytes = format_manifest({{0, 10}});
    EXPECT_EQ(bytes, std::string("\0\0\0\0\x0a\0\0\0\0\0\0\0\0\0\0\0", 16));
    EXPECT_EQ(parse_manifest(bytes, 10, "index.bin"), (std::vector<ManifestEntry>{{0, 10}}));
}

TEST(Manifest, OffsetsAreSums) {
    const std::string bytes = format_manifest({{0, 60}, {1, 60}});
    std::int64_t offset = 0;
    std::memcpy(&offset, bytes.data() + 24, 8);
    EXPECT_EQ(offset, 60);
}

TEST(Manifest, LegacyRowsAreToldByTheTotalEvenWhen16DividesTheSize) {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> rows;
    for (std::uint32_t chunk = 0; chunk < 2; ++chunk)
        for (std::uint32_t row = 0; row < 32; ++row) rows.emplace_back(chunk, row);
    ASSERT_EQ(legacy(rows).size(), 512U);
    EXPECT_EQ(parse_manifest(legacy(rows), 64, "index.bin"),
              (std::vector<ManifestEntry>{{0, 32}, {1, 32}}));
}

TEST(Manifest, LegacyWithAnOddNumberOfRowsAndGapsInTheIds) {
    EXPECT_EQ(parse_manifest(legacy({{7, 0}, {2, 5}, {7, 1}}), 3, "index.bin"),
              (std::vector<ManifestEntry>{{2, 1}, {7, 2}}));
}

TEST(Manifest, EmptyChunksAreDropped) {
    EXPECT_EQ(parse_manifest(format_manifest({{0, 4}, {1, 0}, {2, 5}}), 9, "index.bin"),
              (std::vector<ManifestEntry>{{0, 4}, {2, 5}}));
}

TEST(Manifest, NamesTheFileAndBothReadingsWhenNothingFits) {
    try {
        parse_manifest(format_manifest({{0, 10}}), 11, "d/index.bin");
        FAIL();
    } catch (const UserError& e) {
        EXPECT_STREQ(e.what(),
                     "d/index.bin: lists 10 tokens as chunk records or 2 as legacy rows, but "
                     "metadata.json says total_tokens = 11");
    }
    EXPECT_THROW(parse_manifest("12345", 5, "index.bin"), UserError);
}

}  // namespace
}  // namespace clt
