#include "clt/io/content.hpp"

#include <algorithm>
#include <cctype>

namespace clt {
namespace {

using namespace std::string_view_literals;

struct Kind {
    std::string_view start;
    const char* words;
};

// First bytes, from the formats' own documents.
constexpr Kind kinds[] = {
    {"version https://git-lfs"sv, "a Git LFS pointer: fetch the file itself with `git lfs pull`"},
    {"/annex/objects/"sv, "a git-annex pointer: fetch the file itself with `git annex get`"},
    {"\x1F\x8B"sv, "gzip data"},
    {"\x28\xB5\x2F\xFD"sv, "zstd data"},
    {"\xFD"
     "7zXZ\0"sv,
     "xz data"},
    {"BZh"sv, "bzip2 data"},
    {"\x04\x22\x4D\x18"sv, "lz4 data"},
    {"PK\x03\x04"sv, "a zip archive (PyTorch's .bin and .pt, NumPy's .npz and .docx are such)"},
    {"7z\xBC\xAF\x27\x1C"sv, "a 7z archive"},
    {"Rar!"sv, "a RAR archive"},
    {"\x93NUMPY"sv, "a NumPy array (.npy)"},
    {"PAR1"sv, "a Parquet table"},
    {"ARROW1"sv, "an Arrow table"},
    {"GGUF"sv, "a GGUF model"},
    {"\x89HDF\r\n\x1A\n"sv, "an HDF5 file"},
    {"%PDF-"sv, "a PDF document"},
    {"SQLite format 3"sv, "an SQLite data base"},
    {"\x7F"
     "ELF"sv,
     "a program (ELF)"},
    {"\x80\x02"sv, "a Python pickle"},
    {"\x80\x03"sv, "a Python pickle"},
    {"\x80\x04\x95"sv, "a Python pickle"},
    {"\x80\x05\x95"sv, "a Python pickle"},
    {"\xFF\xFE\0\0"sv, "UTF-32 text"},
    {"\0\0\xFE\xFF"sv, "UTF-32 text"},
    {"\xFF\xFE"sv, "UTF-16 text (little endian)"},
    {"\xFE\xFF"sv, "UTF-16 text (big endian)"},
    // What the Hugging Face hub answers in place of a file.
    {"Entry not found"sv, "the answer \"Entry not found\" of a server, not the file"},
    {"Invalid username or password"sv, "the answer of a server that asks for a login"},
    {"Access to model"sv, "the answer of a server that asks for access"},
};

std::string lower_case(std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return lower;
}

// Text of mostly Latin letters in UTF-16: every second byte is zero. Which one tells the order.
std::optional<std::string> utf16_without_mark(std::string_view head) {
    const std::size_t pairs = std::min<std::size_t>(head.size(), 256) / 2;
    if (pairs < 2) return std::nullopt;
    std::size_t even = 0;
    std::size_t odd = 0;
    for (std::size_t i = 0; i < pairs; ++i) {
        even += head[2 * i] == '\0' ? 1 : 0;
        odd += head[2 * i + 1] == '\0' ? 1 : 0;
    }
    if (even == 0 && odd * 4 >= pairs * 3) return "UTF-16 text (little endian, without a mark)";
    if (odd == 0 && even * 4 >= pairs * 3) return "UTF-16 text (big endian, without a mark)";
    return std::nullopt;
}

}  // namespace

std::optional<std::string> content_kind(std::string_view head) {
    for (const Kind& kind : kinds)
        if (head.starts_with(kind.start)) return kind.words;
    if (head.size() > 262 && head.substr(257, 5) == "ustar") return "a tar archive";
    // A safetensors file opens with the length of its header, below 100 MB, and a brace.
    if (head.size() > 9 && head.substr(4, 5) == "\0\0\0\0{"sv) return "a safetensors file";
    if (head.size() >= 4 && head.find_first_not_of('\0') == std::string_view::npos)
        return "nothing but zero bytes: it was not written or not fetched whole";
    std::string_view text = head;
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0)
        text.remove_prefix(1);
    const std::string start = lower_case(text.substr(0, 16));
    if (start.starts_with("<!doctype html") || start.starts_with("<html"))
        return "a web page (HTML): what was fetched is not the file itself";
    if (start.starts_with("<?xml")) return "XML";
    return utf16_without_mark(head);
}

}  // namespace clt
