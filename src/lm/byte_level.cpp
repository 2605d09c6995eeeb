#include "lm/byte_level.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>

#include "clt/base/error.hpp"
#include "clt/base/utf8.hpp"

namespace clt {
namespace {

// Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 and up.
// Source: Radford et al. 2019, byte-level vocabulary.
struct ByteMap {
    std::array<std::uint32_t, 256> code_point{};
    std::array<int, 256 + 68> byte{};  // by code point; -1: none

    ByteMap() {
        byte.fill(-1);
        std::uint32_t next = 256;
        for (std::uint32_t b = 0; b < 256; ++b) {
            const bool printable =
                (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
            code_point[b] = printable ? b : next++;
            byte[code_point[b]] = static_cast<int>(b);
        }
    }
};

const ByteMap& byte_map() {
    static const ByteMap map;
    return map;
}

// \s as the tokenizers library means it (Unicode White_Space), spelled out: PCRE2's own \s also
// takes U+180E.
#define CLT_WHITE \
    R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"
constexpr const char* pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" CLT_WHITE "\\p{L}\\p{N}]+|[" CLT_WHITE
    "]+(?![^" CLT_WHITE "])|[" CLT_WHITE "]+";
#undef CLT_WHITE

[[noreturn]] void fail(const char* call, int code) {
    std::array<PCRE2_UCHAR, 256> words{};
    pcre2_get_error_message(code, words.data(), words.size());
    library_error(call, code, reinterpret_cast<const char*>(words.data()));
}

}  // namespace

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
    const ByteMap& map = byte_map();
    std::string bytes;
    for (std::size_t at = 0; at < spelling.size();) {
        const std::uint32_t code = next_code_point(spelling, at);
        if (code >= map.byte.size() || map.byte[code] < 0) return std::nullopt;
        bytes.push_back(static_cast<char>(map.byte[code]));
    }
    return bytes;
}

std::string spelling_of_byte(unsigned char byte) {
    std::string spelling;
    append_utf8(byte_map().code_point[byte], spelling);
    return spelling;
}

struct WordSplitter::Impl {
    pcre2_code* code = nullptr;
    pcre2_match_data* match = nullptr;

    ~Impl() {
        pcre2_match_data_free(match);
        pcre2_code_free(code);
    }
};

WordSplitter::WordSplitter() : impl_(std::make_unique<Impl>()) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    impl_->code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED, &error, &offset, nullptr);
    if (impl_->code == nullptr) fail("pcre2_compile", error);
    // Without JIT on this processor pcre2_match interprets the pattern: slower, same words.
    pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE);
    impl_->match = pcre2_match_data_create_from_pattern(impl_->code, nullptr);
    if (impl_->match == nullptr) fail("pcre2_match_data_create_from_pattern", PCRE2_ERROR_NOMEMORY);
}

WordSplitter::~WordSplitter() = default;

std::size_t WordSplitter::next(std::string_view text, std::size_t at) {
    const int found = pcre2_match(impl_->code, reinterpret_cast<PCRE2_SPTR>(text.data()),
                                  text.size(), at, PCRE2_NO_UTF_CHECK, impl_->match, nullptr);
    // Every character is a letter, digit, white space or other: a miss can only be an error.
    if (found < 0) fail("pcre2_match", found);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(impl_->match);
    return ends[1] - at;
}

}  // namespace clt
