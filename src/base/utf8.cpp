#include "clt/base/utf8.hpp"

#include <cstring>

namespace clt {
namespace {

struct Scan {
    std::size_t length = 0;  // bytes of the character, or of the maximal broken part
    bool valid = false;
    bool cut = false;  // the text ends within it
};

// One character or broken part at text[at]. Ranges of the second byte: the Unicode Standard,
// table 3-7.
Scan scan(std::string_view text, std::size_t at) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = byte(at);
    if (lead < 0x80) return {1, true};
    if (lead < 0xC2 || lead > 0xF4) return {1, false};
    const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    unsigned low = 0x80;
    unsigned high = 0xBF;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    for (std::size_t i = 1; i < length; ++i) {
        if (at + i >= text.size()) return {i, false, true};
        if (byte(at + i) < low || byte(at + i) > high) return {i, false};
        low = 0x80;
        high = 0xBF;
    }
    return {length, true};
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
    constexpr std::uint64_t beyond_ascii = 0x8080808080808080U;
    std::size_t at = 0;
    while (at < text.size()) {
        std::uint64_t word = 0;
        while (at + sizeof word <= text.size()) {  // ASCII, eight at a time
            std::memcpy(&word, text.data() + at, sizeof word);
            if ((word & beyond_ascii) != 0) break;
            at += sizeof word;
        }
        if (at == text.size()) break;
        const Scan next = scan(text, at);
        if (!next.valid) return at;
        at += next.length;
    }
    return at;
}

std::size_t utf8_length(std::string_view text) {
    const Scan first = scan(text, 0);
    return first.valid ? first.length : 0;
}

bool utf8_cut(std::string_view tail) {
    return scan(tail, 0).cut;
}

std::string repair_utf8(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        const Scan next = scan(text, at);
        if (next.valid)
            out.append(text.substr(at, next.length));
        else
            out.append("\xEF\xBF\xBD");
        at += next.length;
    }
    return out;
}

void append_utf8(std::uint32_t code_point, std::string& out) {
    const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code_point < 0x80) {
        put(code_point);
    } else if (code_point < 0x800) {
        put(0xC0 | (code_point >> 6));
        put(0x80 | (code_point & 0x3F));
    } else if (code_point < 0x10000) {
        put(0xE0 | (code_point >> 12));
        put(0x80 | ((code_point >> 6) & 0x3F));
        put(0x80 | (code_point & 0x3F));
    } else {
        put(0xF0 | (code_point >> 18));
        put(0x80 | ((code_point >> 12) & 0x3F));
        put(0x80 | ((code_point >> 6) & 0x3F));
        put(0x80 | (code_point & 0x3F));
    }
}

std::uint32_t next_code_point(std::string_view text, std::size_t& at) {
    const auto byte = [&](std::size_t i) {
        return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
    };
    const std::size_t length = scan(text, at).length;
    std::uint32_t code = byte(at);
    if (length > 1) code &= 0x7FU >> length;
    for (std::size_t i = 1; i < length; ++i) code = (code << 6) | (byte(at + i) & 0x3F);
    at += length;
    return code;
}

}  // namespace clt
