#include "lm/text_stream.hpp"

#include <iconv.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/base/utf8.hpp"
#include "clt/io/content.hpp"

namespace clt {
namespace {

using namespace std::string_view_literals;

constexpr const char* cure =
    "set text.encoding to what it is (\"latin-1\", \"utf-16\", \"cp1252\" or another name of "
    "`iconv -l`), or convert the file";

// Python's names, and in what iconv's differ from them.
std::string iconv_name(const std::string& encoding) {
    std::string name;
    for (const char c : encoding)
        if (c != '-' && c != '_' && c != ' ')
            name.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
    static constexpr std::array<std::pair<std::string_view, const char*>, 10> known{{
        {"utf8", "UTF-8"},
        {"utf8sig", "UTF-8"},
        {"latin1", "ISO-8859-1"},
        {"utf16", "UTF-16"},
        {"utf16le", "UTF-16LE"},
        {"utf16be", "UTF-16BE"},
        {"utf32", "UTF-32"},
        {"utf32le", "UTF-32LE"},
        {"utf32be", "UTF-32BE"},
        {"shiftjis", "SHIFT_JIS"},
    }};
    for (const auto& [python, iconv] : known)
        if (name == python) return iconv;
    return encoding;
}

// A place in the text, for messages: "FILE:LINE: byte N".
class Place {
  public:
    Place(std::string path, Index byte) : path_(std::move(path)), byte_(byte) {
        if (path_.ends_with(".gz") || path_.ends_with(".zst")) of_ = " of the decompressed text";
    }
    void pass(std::string_view text, Index bytes) {
        line_ += std::count(text.begin(), text.end(), '\n');
        byte_ += bytes;
    }
    std::string words(unsigned char byte) const {
        return fmt::format("{}:{}: byte {}{} (0x{:02X})", path_, line_, byte_, of_, byte);
    }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
    const char* of_ = "";
    Index line_ = 1;
    Index byte_ = 0;
};

// UTF-8 that is checked on its way.
class CheckedStream final : public ByteStream {
  public:
    CheckedStream(const std::string& path, std::unique_ptr<ByteStream> source, Index skipped)
        : source_(std::move(source)), place_(path, skipped) {}

    Index read(char* out, Index n) override {
        while (true) {
            // The beginning of a character that the last call could not finish.
            std::copy(tail_.begin(), tail_.end(), out);
            const auto kept = static_cast<Index>(tail_.size());
            CLT_CHECK(n > kept);
            const Index got = source_->read(out + kept, n - kept);
            const std::string_view text(out, static_cast<std::size_t>(kept + got));
            if (text.empty()) return 0;
            const std::size_t valid = valid_utf8_prefix(text);
            const std::string_view rest = text.substr(valid);
            place_.pass(text.substr(0, valid), static_cast<Index>(valid));
            if (!rest.empty() && (got == 0 || !utf8_cut(rest))) refuse(rest);
            tail_ = rest;
            if (valid > 0) return static_cast<Index>(valid);
        }
    }

  private:
    [[noreturn]] void refuse(std::string_view rest) const {
        const std::string at = place_.words(static_cast<unsigned char>(rest.front()));
        if (utf8_cut(rest)) user_error("{} begins a character that the file's end cuts", at);
        user_error("{} is not UTF-8: {}", at, cure);
    }
    std::unique_ptr<ByteStream> source_;
    Place place_;
    std::string tail_;
};

// Any other encoding, through iconv(3).
class ConvertedStream final : public ByteStream {
  public:
    ConvertedStream(const std::string& path, std::unique_ptr<ByteStream> source, Index skipped,
                    const std::string& name, std::string encoding)
        : source_(std::move(source)),
          place_(path, skipped),
          encoding_(std::move(encoding)),
          converter_(iconv_open("UTF-8", name.c_str())) {
        check_encoding(encoding_);
    }
    ConvertedStream(const ConvertedStream&) = delete;
    ConvertedStream& operator=(const ConvertedStream&) = delete;
    ~ConvertedStream() override {
        if (converter_ != no_converter()) iconv_close(converter_);
    }
    static iconv_t no_converter() {
        return reinterpret_cast<iconv_t>(-1);  // NOLINT(performance-no-int-to-ptr): iconv(3)'s own
    }

    Index read(char* out, Index n) override {
        while (true) {
            bool at_end = false;
            if (wants_more_) {
                const std::size_t rest = input_.size() - begin_;
                input_.erase(0, std::exchange(begin_, 0));
                input_.resize(rest + read_bytes);
                const Index got = source_->read(input_.data() + rest, read_bytes);
                input_.resize(rest + static_cast<std::size_t>(got));
                at_end = got == 0;
                wants_more_ = false;
            }
            if (at_end && begin_ == input_.size()) return 0;
            char* in = input_.data() + begin_;
            std::size_t in_left = input_.size() - begin_;
            char* to = out;
            auto to_left = static_cast<std::size_t>(n);
            const std::size_t result = iconv(converter_, &in, &in_left, &to, &to_left);
            const int code = result == static_cast<std::size_t>(-1) ? errno : 0;
            const auto written = static_cast<std::size_t>(to - out);
            place_.pass({out, written}, static_cast<Index>(input_.size() - begin_ - in_left));
            begin_ = input_.size() - in_left;
            if (code == EILSEQ || (code == EINVAL && at_end))
                user_error("{} {} in {}, which text.encoding says",
                           place_.words(static_cast<unsigned char>(*in)),
                           code == EILSEQ ? "is no character" : "begins a character without an end",
                           encoding_);
            wants_more_ = code == EINVAL || in_left == 0;
            if (written > 0) return static_cast<Index>(written);
        }
    }

  private:
    static constexpr Index read_bytes = Index{1} << 16;
    std::unique_ptr<ByteStream> source_;
    Place place_;
    std::string encoding_;
    iconv_t converter_;
    std::string input_;
    std::size_t begin_ = 0;
    bool wants_more_ = true;
};

struct Mark {
    std::string_view bytes;
    const char* name;  // iconv's
};
constexpr std::array<Mark, 5> marks{{{"\xEF\xBB\xBF"sv, "UTF-8"},
                                     {"\xFF\xFE\0\0"sv, "UTF-32LE"},
                                     {"\0\0\xFE\xFF"sv, "UTF-32BE"},
                                     {"\xFF\xFE"sv, "UTF-16LE"},
                                     {"\xFE\xFF"sv, "UTF-16BE"}}};

bool is_wide(std::string_view name) {
    return name.starts_with("UTF-16") || name.starts_with("UTF-32");
}

// Whether the whole head is UTF-8, and whether any of it is beyond ASCII.
struct HeadCheck {
    bool utf8 = false;
    bool beyond_ascii = false;
};
HeadCheck check_head(std::string_view head) {
    const std::size_t valid = valid_utf8_prefix(head);
    HeadCheck check;
    check.utf8 = valid == head.size() || utf8_cut(head.substr(valid));
    check.beyond_ascii =
        std::any_of(head.begin(), head.end(), [](char c) { return (c & 0x80) != 0; });
    return check;
}

}  // namespace

void check_encoding(const std::string& encoding) {
    iconv_t converter = iconv_open("UTF-8", iconv_name(encoding).c_str());
    if (converter == ConvertedStream::no_converter())
        user_error(
            "text.encoding = \"{}\", expected \"utf-8\", \"latin-1\", \"utf-16\" or another name "
            "of "
            "`iconv -l`",
            encoding);
    iconv_close(converter);
}

std::unique_ptr<ByteStream> open_text_stream(const std::string& path, const std::string& encoding) {
    auto stream = std::make_unique<HeadedStream>(open_byte_stream(path), content_bytes);
    const std::string_view head = stream->head();
    std::string name = iconv_name(encoding);
    const Mark* mark = nullptr;
    for (const Mark& known : marks)
        if (mark == nullptr && head.starts_with(known.bytes)) mark = &known;

    const auto content = content_of(head);
    const bool wide_content = content && content->what.starts_with("UTF-");
    if (wide_content && !is_wide(name))
        user_error("{}: is {}: set text.encoding = \"{}\"", path, content->what,
                   content->what.starts_with("UTF-32") ? "utf-32" : "utf-16");
    if (content && !wide_content)
        user_error("{}: holds {}, expected text", path, sentence_of(*content, path));
    if (mark != nullptr && !std::string_view(mark->name).starts_with(name))
        user_error("{}: begins with the mark of {}, but text.encoding is \"{}\"", path, mark->name,
                   encoding);
    const HeadCheck check = check_head(head);
    if (mark == nullptr && is_wide(name) && check.utf8 && head.find('\0') == head.npos &&
        !head.empty())
        user_error("{}: looks like UTF-8, but text.encoding is \"{}\"", path, encoding);
    if (mark == nullptr && !is_wide(name) && name != "UTF-8" && check.utf8 && check.beyond_ascii)
        log_warning("{}: looks like UTF-8, but text.encoding is \"{}\"", path, encoding);

    if (name == "UTF-16" || name == "UTF-32") {
        const bool big = content && content->what.find("big endian") != std::string::npos;
        name = mark != nullptr ? mark->name : name + (big ? "BE" : "LE");
    }
    Index skipped = 0;
    if (mark != nullptr) {
        std::array<char, 4> bytes{};
        skipped = stream->read(bytes.data(), static_cast<Index>(mark->bytes.size()));
    }
    if (name == "UTF-8") return std::make_unique<CheckedStream>(path, std::move(stream), skipped);
    return std::make_unique<ConvertedStream>(path, std::move(stream), skipped, name, encoding);
}

}  // namespace clt
