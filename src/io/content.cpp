#include "clt/io/content.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace clt {
namespace {

using namespace std::string_view_literals;

struct Kind {
    std::string_view start;
    const char* what;
    const char* suffix = "";
    const char* cure = "";
};

constexpr const char* decompress = "decompress it, or compress it anew with zstd or gzip";
constexpr const char* fetch_again = "fetch the file again";
constexpr const char* unpickle = "save its content in a format that clt reads";

// First bytes, from the formats' own documents.
constexpr Kind kinds[] = {
    {"version https://git-lfs"sv, "a Git LFS pointer", "",
     "fetch the file itself with `git lfs pull`"},
    {"# xet version"sv, "a Xet pointer", "", "fetch the file itself with `git xet checkout`"},
    {"/annex/objects/"sv, "a git-annex pointer", "", "fetch the file itself with `git annex get`"},
    {"\x1F\x8B"sv, "gzip data", ".gz"},
    {"\x28\xB5\x2F\xFD"sv, "zstd data", ".zst"},
    {"\xFD\x37zXZ\0"sv, "xz data", "", decompress},
    {"BZh91AY&SY"sv, "bzip2 data", "", decompress},
    {"\x04\x22\x4D\x18"sv, "lz4 data", "", decompress},
    {"LZIP\x01"sv, "lzip data", "", decompress},
    {"PK\x03\x04"sv, "a zip archive (.npz, and PyTorch's .bin and .pt, are such)", "", "unpack it"},
    {"7z\xBC\xAF\x27\x1C"sv, "a 7z archive", "", "unpack it"},
    {"Rar!\x1A\x07"sv, "a RAR archive", "", "unpack it"},
    {"\x93NUMPY"sv, "a NumPy array", ".npy"},
    {"PAR1\x15"sv, "a Parquet table", "", "write its text column as .jsonl"},
    {"ARROW1\0\0"sv, "an Arrow table", "", "write its text column as .jsonl"},
    {"\xFF\xFF\xFF\xFF\x10\x00\x00\x00"sv, "an Arrow stream", "",
     "write its text column as .jsonl"},
    {"GGUF\x02\0\0\0"sv, "a GGUF model", "", "clt reads safetensors"},
    {"GGUF\x03\0\0\0"sv, "a GGUF model", "", "clt reads safetensors"},
    {"\x89HDF\r\n\x1A\n"sv, "an HDF5 file"},
    {"%PDF-1."sv, "a PDF document", "", "extract its text"},
    {"SQLite format 3\0"sv, "an SQLite data base", "", "write its text as .jsonl"},
    {"\x7F\x45LF"sv, "a program (ELF)"},
    {"\x80\x02\x8A\x0A\x6C\xFC\x9C\x46"sv, "a PyTorch file of the old kind", "", unpickle},
    {"\x80\x02}q\0"sv, "a Python pickle", "", unpickle},
    {"\x80\x04\x95"sv, "a Python pickle", "", unpickle},
    {"\x80\x05\x95"sv, "a Python pickle", "", unpickle},
    {"\xFF\xFE\0\0"sv, "UTF-32 text", "", "save it as UTF-8"},
    {"\0\0\xFE\xFF"sv, "UTF-32 text", "", "save it as UTF-8"},
    {"\xFF\xFE"sv, "UTF-16 text (little endian)", "", "save it as UTF-8"},
    {"\xFE\xFF"sv, "UTF-16 text (big endian)", "", "save it as UTF-8"},
    // What the Hugging Face hub answers in place of a file.
    {"Invalid username or password."sv, "the answer of a server that asks for a login", "",
     fetch_again},
    {"Invalid credentials in Authorization header"sv,
     "the answer of a server that asks for a login", "", fetch_again},
};

std::string lower_case(std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return lower;
}

// Text of mostly Latin letters in UTF-16: every second byte is zero. Which one tells the order.
std::optional<Content> utf16_without_mark(std::string_view head) {
    const std::size_t pairs = std::min<std::size_t>(head.size(), 256) / 2;
    if (pairs < 2) return std::nullopt;
    std::size_t even = 0;
    std::size_t odd = 0;
    for (std::size_t i = 0; i < pairs; ++i) {
        even += head[2 * i] == '\0' ? 1 : 0;
        odd += head[2 * i + 1] == '\0' ? 1 : 0;
    }
    if (even == 0 && odd * 4 >= pairs * 3)
        return Content{"UTF-16 text (little endian, without a mark)", "", "save it as UTF-8"};
    if (odd == 0 && even * 4 >= pairs * 3)
        return Content{"UTF-16 text (big endian, without a mark)", "", "save it as UTF-8"};
    return std::nullopt;
}

}  // namespace

std::optional<Content> content_of(std::string_view head, std::size_t least_bytes) {
    for (const Kind& kind : kinds)
        if (kind.start.size() >= least_bytes && head.starts_with(kind.start))
            return Content{kind.what, kind.suffix, kind.cure};
    if (head == "Entry not found")
        return Content{"a server's answer \"Entry not found\"", "", fetch_again};
    if (head.size() > 262 && head.substr(257, 5) == "ustar")
        return Content{"a tar archive", "", "unpack it"};
    // A safetensors file opens with the length of its header, below 100 MB, and a brace.
    if (head.size() > 9 && head.substr(4, 6) == "\0\0\0\0{\""sv)
        return Content{"a safetensors file", "", ""};
    if (head.size() >= 8 && head.find_first_not_of('\0') == std::string_view::npos)
        return Content{"nothing but zero bytes at its start", "",
                       "it was not written or not fetched whole"};
    std::string_view text = head;
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0)
        text.remove_prefix(1);
    const std::string start = lower_case(text.substr(0, 16));
    if (start.starts_with("<!doctype html") || start.starts_with("<html"))
        return Content{"a web page (HTML)", "",
                       "a failed download? (HTML that is meant as text can stand in a .jsonl)"};
    return least_bytes > 2 ? std::nullopt : utf16_without_mark(head);
}

std::string sentence_of(const Content& content, const std::string& bare) {
    if (!content.suffix.empty())
        return fmt::format("{}: name it {}{}", content.what, bare, content.suffix);
    return content.what + (content.cure.empty() ? "" : ": " + content.cure);
}

}  // namespace clt
