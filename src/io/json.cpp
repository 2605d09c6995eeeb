#include "clt/io/json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "clt/base/error.hpp"
#include "clt/base/utf8.hpp"
#include "clt/io/content.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

// About what a value takes in memory: itself in a list; a list, object or text on the heap; a node
// of an object.
constexpr Index value_bytes = 16;
constexpr Index container_bytes = 64;
constexpr Index member_bytes = 96;

constexpr std::string_view white = " \t\n\r";

class JsonParser {
  public:
    JsonParser(std::string_view text, const std::string& name, Index first_line)
        : text_(text), name_(name), first_line_(first_line) {
        if (text_.starts_with("\xEF\xBB\xBF")) text_.remove_prefix(3);
    }

    Json parse(bool must_be_object) {
        skip_white();
        if (text_.empty()) user_error("{}: is empty, expected JSON", name_);
        if (at_ == text_.size()) user_error("{}: holds only white space, expected JSON", where());
        if (must_be_object && next() != '{') refuse_root();
        Json root = value(0);
        skip_white();
        if (at_ < text_.size())
            fail("{} behind the end of the {}", found(), root.is_object() ? "object" : "value");
        return root;
    }

  private:
    char next() const { return text_[at_]; }
    bool ends() const { return at_ == text_.size(); }
    void skip_white() { at_ = std::min(text_.find_first_not_of(white, at_), text_.size()); }

    // "NAME:LINE:COLUMN" of at_; columns are characters from 1.
    std::string where() const {
        const std::string_view before = text_.substr(0, at_);
        const Index line = first_line_ + std::count(before.begin(), before.end(), '\n');
        const std::string_view on_line = before.substr(before.rfind('\n') + 1);  // npos + 1 is 0
        const auto column = std::count_if(on_line.begin(), on_line.end(),
                                          [](char c) { return (c & 0xC0) != 0x80; });
        return fmt::format("{}:{}:{}", name_, line, column + 1);
    }
    // The character at at_.
    std::string found() const {
        if (ends()) return "the end";
        const auto byte = static_cast<unsigned char>(next());
        if (byte > ' ' && byte < 0x7F) return fmt::format("'{}'", next());
        return fmt::format("byte 0x{:02X}", byte);
    }
    template <class... Args>
    [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
        refuse_other_kind();
        user_error("{}: {}", where(), fmt::format(format, std::forward<Args>(args)...));
    }
    // What fails at its first bytes may be no JSON at all.
    void refuse_other_kind() const {
        constexpr std::size_t first_bytes = 16;
        if (at_ >= first_bytes) return;
        if (const auto content = content_of(text_.substr(0, content_bytes)))
            user_error("{}: is {}; expected JSON", name_, sentence_of(*content, name_));
    }
    [[noreturn]] void refuse_root() {
        refuse_other_kind();
        const std::string place = where();
        const Json root = value(0);  // broken text is told of first
        user_error("{}: {}, expected an object: {{...}}", place, shown(root));
    }
    [[noreturn]] void cut(const char* what) const { fail("ends in the middle of {}: cut", what); }

    void take_memory(Index bytes) {
        memory_ += bytes;
        if (memory_ > json_memory_bytes)
            fail("holds too much: its values would take more than {} MB of memory",
                 json_memory_bytes / 1'000'000);
    }

    Json value(int depth) {
        if (depth > json_depth) fail("nested deeper than {} levels", json_depth);
        take_memory(value_bytes);
        switch (next()) {
            case '{':
                return object(depth);
            case '[':
                return list(depth);
            case '"':
                return string();
            default:
                return next() == '-' || is_digit(at_) ? number() : word();
        }
    }

    Json object(int depth) {
        take_memory(container_bytes);
        Json result = Json::object();
        auto& members = result.get_ref<Json::object_t&>();
        ++at_;
        skip_white();
        if (!ends() && next() == '}') {
            ++at_;
            return result;
        }
        while (true) {
            if (ends()) cut("an object");
            if (next() == '\'') fail("a key in single quotes, expected double quotes");
            if (next() == '}') fail("a comma before '}}'");
            if (next() != '"') fail("{}, expected a key in double quotes", found());
            std::string key = string();
            take_memory(member_bytes);
            skip_white();
            if (ends()) cut("an object");
            if (next() != ':') fail("{}, expected ':' behind the key {}", found(), cut_to(key));
            ++at_;
            skip_white();
            if (ends()) cut("an object");
            members.insert_or_assign(std::move(key), value(depth + 1));
            if (separator('}', "an object")) return result;
        }
    }

    Json list(int depth) {
        take_memory(container_bytes);
        Json result = Json::array();
        auto& items = result.get_ref<Json::array_t&>();
        ++at_;
        skip_white();
        if (!ends() && next() == ']') {
            ++at_;
            return result;
        }
        while (true) {
            if (ends()) cut("a list");
            if (next() == ']') fail("a comma before ']'");
            items.push_back(value(depth + 1));
            if (separator(']', "a list")) return result;
        }
    }

    // Passes a comma (false) or the closing bracket (true).
    bool separator(char close, const char* what) {
        skip_white();
        if (ends()) cut(what);
        if (next() != close && next() != ',')
            fail("{}, expected ',' or '{}' in {}", found(), close, what);
        const bool closed = next() == close;
        ++at_;
        skip_white();
        return closed;
    }

    std::string string() {
        std::string out;
        ++at_;
        while (true) {
            const std::size_t begin = at_;
            while (!ends() && is_plain(next())) ++at_;
            out.append(text_, begin, at_ - begin);
            if (ends()) cut("a text");
            const auto byte = static_cast<unsigned char>(next());
            if (byte == '"') {
                ++at_;
                break;
            }
            if (byte == '\\')
                escape(out);
            else if (byte == '\n' || byte == '\r')
                fail("a line ends within a text, expected '\"' before it, or \\n");
            else if (byte < 0x20)
                fail("byte 0x{:02X} within a text, expected \\u{:04X}", byte, byte);
            else
                character(out);
        }
        take_memory(container_bytes + static_cast<Index>(out.size()));
        return out;
    }

    static bool is_plain(char c) {
        return static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) < 0x80 &&
               c != '"' && c != '\\';
    }

    // One character beyond ASCII.
    void character(std::string& out) {
        constexpr std::size_t longest = 4;
        const std::size_t length = utf8_length(text_.substr(at_, longest));
        if (length == 0) fail("byte 0x{:02X} is not UTF-8", static_cast<unsigned char>(next()));
        out.append(text_, at_, length);
        at_ += length;
    }

    void escape(std::string& out) {
        constexpr std::string_view letters = "\"\\/bfnrt";
        constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
        if (at_ + 1 == text_.size()) {
            ++at_;
            cut("a text");
        }
        const char letter = text_[at_ + 1];
        if (letter == 'u') {
            append_utf8(code_point(), out);
            return;
        }
        const std::size_t which = letters.find(letter);
        if (which == std::string_view::npos) {
            ++at_;
            fail("{} behind a backslash, expected one of \" \\ / b f n r t u", found());
        }
        out.push_back(meanings[which]);
        at_ += 2;
    }

    std::uint32_t code_point() {
        const std::uint32_t first = unit();
        const bool high = first >= 0xD800 && first < 0xDC00;
        if (!high || !text_.substr(at_).starts_with("\\u")) return first;
        const std::size_t back = at_;
        const std::uint32_t second = unit();
        if (second >= 0xDC00 && second < 0xE000)
            return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        at_ = back;
        return first;
    }
    // \uXXXX
    std::uint32_t unit() {
        constexpr std::size_t escape_bytes = 6;
        const std::string_view digits = text_.substr(at_ + 2, 4);
        std::uint32_t code = 0;
        const auto* const end = digits.data() + digits.size();
        if (digits.size() < 4 || std::from_chars(digits.data(), end, code, 16).ptr != end)
            fail("{} behind \\u, expected four hexadecimal digits", cut_to(digits));
        at_ += escape_bytes;
        return code;
    }

    bool is_digit(std::size_t at) const {
        return at < text_.size() && text_[at] >= '0' && text_[at] <= '9';
    }
    std::size_t past_digits(std::size_t at) const {
        while (is_digit(at)) ++at;
        return at;
    }

    Json number() {
        const std::size_t begin = at_;
        std::size_t end = begin + (next() == '-' ? 1 : 0);
        if (text_.substr(end).starts_with("Infinity")) {
            at_ = end + std::string_view("Infinity").size();
            return -std::numeric_limits<double>::infinity();
        }
        const std::size_t digits = end;
        end = past_digits(digits);
        bool whole = true;
        if (end == digits) fail("a number without digits");
        if (text_[digits] == '0' && end > digits + 1) fail("a number that begins with 0");
        if (end < text_.size() && text_[end] == '.') {
            whole = false;
            const std::size_t fraction = end + 1;
            end = past_digits(fraction);
            if (end == fraction) fail("a number without digits behind the point");
        }
        if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
            whole = false;
            ++end;
            if (end < text_.size() && (text_[end] == '+' || text_[end] == '-')) ++end;
            const std::size_t exponent = end;
            end = past_digits(exponent);
            if (end == exponent) fail("a number without digits in its exponent");
        }
        const char* const first = text_.data() + begin;
        const char* const last = text_.data() + end;
        at_ = end;
        if (whole) {
            std::int64_t integer = 0;
            if (std::from_chars(first, last, integer).ec == std::errc()) return integer;
            std::uint64_t natural = 0;
            if (std::from_chars(first, last, natural).ec == std::errc()) return natural;
        }
        double real = 0;
        if (std::from_chars(first, last, real).ec == std::errc()) return real;
        // Beyond a double: as Python, an infinity, or 0 for what is too small.
        return std::strtod(std::string(first, last).c_str(), nullptr);
    }

    Json word() {
        const std::size_t begin = at_;
        std::size_t end = begin;
        const auto is_letter = [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        };
        while (end < text_.size() && is_letter(text_[end])) ++end;
        const std::string_view letters = text_.substr(begin, end - begin);
        at_ = end;
        if (letters == "null") return nullptr;
        if (letters == "true") return true;
        if (letters == "false") return false;
        if (letters == "NaN") return std::numeric_limits<double>::quiet_NaN();
        if (letters == "Infinity") return std::numeric_limits<double>::infinity();
        at_ = begin;
        if (letters.empty()) {
            if (next() == '\'') fail("a text in single quotes, expected double quotes");
            if (next() == '/' || next() == '#') fail("a comment, expected none: JSON has no such");
            fail("{}, expected a value", found());
        }
        fail(
            "{} is no value of JSON; texts stand in double quotes, and true, false and null are "
            "in lower case",
            cut_to(letters));
    }

    static std::string cut_to(std::string_view text) { return shown(Json(std::string(text))); }

    std::string_view text_;
    const std::string& name_;
    Index first_line_;
    std::size_t at_ = 0;
    Index memory_ = 0;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& name, Index first_line) {
    return JsonParser(text, name, first_line).parse(false);
}

Json parse_json_object(std::string_view text, const std::string& name, Index first_line) {
    return JsonParser(text, name, first_line).parse(true);
}

std::string shown(const Json& value) {
    constexpr std::size_t most_bytes = 60;
    constexpr std::size_t most_values = 4;
    if (value.is_object()) return fmt::format("an object of {} keys", value.size());
    if (value.is_array()) {
        const bool flat = std::none_of(value.begin(), value.end(),
                                       [](const Json& item) { return item.is_structured(); });
        if (!flat || value.size() > most_values)
            return fmt::format("a list of {} values", value.size());
        std::string list;
        for (const Json& item : value) list += (list.empty() ? "" : ", ") + shown(item);
        return "[" + list + "]";
    }
    if (value.is_number_float()) {
        const auto number = value.get<double>();
        if (std::isnan(number)) return "NaN";
        if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    }
    if (!value.is_string()) return value.dump();
    const auto& whole = value.get_ref<const std::string&>();
    std::string start = whole.substr(0, most_bytes);
    // A character is not cut in two.
    if (start.size() < whole.size())
        while (!start.empty() && (whole[start.size()] & 0xC0) == 0x80) start.pop_back();
    std::string text = Json(start).dump(-1, ' ', false, Json::error_handler_t::replace);
    if (start.size() < whole.size()) text.insert(text.size() - 1, "...");
    return text;
}

JsonObject JsonObject::parse(std::string_view text, const std::string& name) {
    JsonObject object;
    object.name_ = name;
    object.object_ = std::make_shared<const Json>(parse_json_object(text, name));
    return object;
}

JsonObject JsonObject::parse_line(std::string_view text, const std::string& file, Index line) {
    JsonObject object;
    object.name_ = fmt::format("{}:{}", file, line);
    object.object_ = std::make_shared<const Json>(parse_json_object(text, file, line));
    return object;
}

JsonObject JsonObject::read(const std::string& path) {
    return parse(read_file(path, json_file_bytes), path);
}

const Json* JsonObject::find(std::string_view key) const {
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
}

void JsonObject::refuse(std::string_view key, const std::string& what) const {
    const Json* const value = find(key);
    if (value == nullptr) user_error("{}: {}{} is missing, expected {}", name_, label_, key, what);
    user_error("{}: {}{} = {}, expected {}", name_, label_, key, shown(*value), what);
}

Index JsonObject::integer(std::string_view key, Index least, Index most) const {
    if (!has(key)) refuse(key, "a whole number");
    return json_integer(*find(key), fmt::format("{}: {}{}", name_, label_, key), least, most);
}

double JsonObject::finite(std::string_view key) const {
    if (!has(key)) refuse(key, "a number");
    return json_finite(*find(key), fmt::format("{}: {}{}", name_, label_, key));
}

std::string JsonObject::text(std::string_view key) const {
    if (!has(key)) refuse(key, "a text");
    return json_text(*find(key), fmt::format("{}: {}{}", name_, label_, key));
}

bool JsonObject::flag(std::string_view key) const {
    const Json* const value = find(key);
    if (value == nullptr || !value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
}

JsonObject JsonObject::object(std::string_view key, const std::string& label) const {
    const Json* const value = find(key);
    if (value == nullptr || !value->is_object()) refuse(key, "an object");
    JsonObject inner;
    inner.name_ = name_;
    inner.label_ = label.empty() ? fmt::format("{}{}.", label_, key) : label;
    inner.object_ = std::shared_ptr<const Json>(object_, value);
    return inner;
}

const Json& JsonObject::list(std::string_view key) const {
    const Json* const value = find(key);
    if (value == nullptr || !value->is_array()) refuse(key, "a list");
    return *value;
}

std::vector<JsonObject> JsonObject::objects(std::string_view key) const {
    std::vector<JsonObject> all;
    for (const Json& value : list(key)) {
        JsonObject inner;
        inner.name_ = name_;
        inner.label_ = fmt::format("{}{}[{}].", label_, key, all.size());
        if (!value.is_object())
            user_error("{}: {}{}[{}] = {}, expected an object", name_, label_, key, all.size(),
                       shown(value));
        inner.object_ = std::shared_ptr<const Json>(object_, &value);
        all.push_back(std::move(inner));
    }
    return all;
}

std::vector<Index> JsonObject::integers(std::string_view key, Index least) const {
    std::vector<Index> numbers;
    for (const Json& value : list(key))
        numbers.push_back(json_integer(
            value, fmt::format("{}: {}{}[{}]", name_, label_, key, numbers.size()), least));
    return numbers;
}

std::vector<float> JsonObject::floats(std::string_view key, Index count, const char* of) const {
    const Json* const value = find(key);
    const std::string expected = fmt::format("{} numbers ({})", count, of);
    if (value == nullptr || !value->is_array()) refuse(key, expected);
    if (static_cast<Index>(value->size()) != count)
        user_error("{}: {}{} has {} numbers, expected {} ({})", name_, label_, key, value->size(),
                   count, of);
    std::vector<float> numbers;
    numbers.reserve(value->size());
    for (const Json& item : *value) {
        const auto number =
            item.is_number() ? static_cast<float>(item.get<double>()) : std::nanf("");
        if (!std::isfinite(number))
            user_error("{}: {}{}[{}] is {}, expected a finite float32 number", name_, label_, key,
                       numbers.size(), shown(item));
        numbers.push_back(number);
    }
    return numbers;
}

Index json_integer(const Json& value, const std::string& where, Index least, Index most) {
    const bool fits = value.is_number_unsigned()
                          ? value.get<std::uint64_t>() <=
                                static_cast<std::uint64_t>(std::numeric_limits<Index>::max())
                          : value.is_number_integer();
    const Index number = fits ? value.get<Index>() : 0;
    if (fits && number >= least && number <= most) return number;
    constexpr Index all = std::numeric_limits<Index>::max();
    std::string expected = "a whole number";
    if (least > std::numeric_limits<Index>::min() && most < all)
        expected += fmt::format(" from {} to {}", least, most);
    else if (least > std::numeric_limits<Index>::min())
        expected += fmt::format(" from {}", least);
    user_error("{} = {}, expected {}", where, shown(value), expected);
}

double json_finite(const Json& value, const std::string& where) {
    if (!value.is_number() || !std::isfinite(value.get<double>()))
        user_error("{} = {}, expected a finite number", where, shown(value));
    return value.get<double>();
}

std::string json_text(const Json& value, const std::string& where) {
    if (!value.is_string()) user_error("{} = {}, expected a text", where, shown(value));
    const auto& text = value.get_ref<const std::string&>();
    if (const std::size_t at = valid_utf8_prefix(text); at < text.size())
        user_error(
            "{}: half of a surrogate pair (\\uD800 to \\uDFFF alone) stands at byte {} of the "
            "text, which is no character",
            where, at);
    return text;
}

}  // namespace clt
