// index.bin in both layouts; the first 8 bytes are metadata.json's total_tokens.
#include "data/manifest.hpp"

#include <cstring>

#include "fuzz.hpp"

CLT_FUZZ_TARGET(bytes) {
    clt::Index total_tokens = 0;
    if (bytes.size() < sizeof total_tokens) return;
    std::memcpy(&total_tokens, bytes.data(), sizeof total_tokens);
    if (total_tokens < 0) return;  // metadata.json is refused before
    const std::string index(bytes.substr(sizeof total_tokens));
    clt::fuzz::refusable([&] {
        const auto entries = clt::parse_manifest(index, total_tokens, "index.bin");
        clt::format_manifest(entries);
    });
}
