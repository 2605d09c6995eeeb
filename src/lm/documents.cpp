#include "lm/documents.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "clt/base/error.hpp"
#include "clt/io/json.hpp"
#include "lm/text_stream.hpp"
#include "lm/token_files.hpp"

namespace clt {
namespace {

constexpr std::size_t fragment_bytes = std::size_t{1} << 18;
// A text without white space for this long is cut anyway, between characters.
constexpr std::size_t longest_fragment_bytes = std::size_t{1} << 24;
constexpr std::size_t read_bytes = std::size_t{1} << 18;
// Nobody's documents are longer, and a line is in memory several times.
constexpr std::size_t longest_line_bytes = std::size_t{1} << 28;

bool is_ascii_white(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

bool is_blank(std::string_view text) {
    return std::all_of(text.begin(), text.end(), is_ascii_white);
}

// The last place in (fragment_bytes / 2, limit] of `text` where ASCII white space follows an ASCII
// character that is none; 0: there is none.
std::size_t cut_place(std::string_view text, std::size_t limit) {
    for (std::size_t at = limit; at > fragment_bytes / 2; --at) {
        const char before = text[at - 1];
        if (is_ascii_white(text[at]) && !is_ascii_white(before) && (before & 0x80) == 0) return at;
    }
    return 0;
}

std::size_t forced_place(std::string_view text, std::size_t limit) {
    std::size_t at = limit;
    while (at > 1 && (text[at] & 0xC0) == 0x80) --at;
    return at;
}

class TextDocuments final : public DocumentSource {
  public:
    TextDocuments(const std::string& path, const TextConfig& config)
        : stream_(open_text_stream(path, config.encoding)), separator_(config.document_separator) {}

    std::optional<Fragment> next() override {
        while (true) {
            std::optional<Fragment> fragment = next_part();
            if (!fragment) return fragment;
            const bool whole = fragment->starts_document && starts_document_;
            if (fragment->text.empty() || (whole && is_blank(fragment->text))) continue;
            return fragment;
        }
    }

  private:
    // starts_document_ then says whether the part after this one starts a document.
    std::optional<Fragment> next_part() {
        std::size_t searched = 0;
        while (true) {
            const std::string_view text = std::string_view(text_).substr(begin_);
            if (!separator_.empty()) {
                const std::size_t found = text.find(separator_, searched);
                if (found != std::string_view::npos)
                    return take(found, found + separator_.size(), true);
                searched = text.size() - std::min(text.size(), separator_.size() - 1);
            }
            if (at_end_) {
                if (text.empty()) return std::nullopt;
                return take(text.size(), text.size(), true);
            }
            // What may be the beginning of a separator stays.
            const std::size_t limit = text.size() - std::min(text.size(), separator_.size());
            if (limit > fragment_bytes) {
                std::size_t at = cut_place(text, limit - 1);
                if (at == 0 && limit > longest_fragment_bytes) at = forced_place(text, limit - 1);
                if (at > 0) return take(at, at, false);
            }
            text_.erase(0, std::exchange(begin_, 0));
            const std::size_t before = text_.size();
            text_.resize(before + read_bytes);
            const Index got = stream_->read(text_.data() + before, read_bytes);
            text_.resize(before + static_cast<std::size_t>(got));
            at_end_ = got == 0;
        }
    }
    Fragment take(std::size_t length, std::size_t consumed, bool ends_document) {
        Fragment fragment{starts_document_, text_.substr(begin_, length), {}};
        begin_ += consumed;
        starts_document_ = ends_document;
        return fragment;
    }

    std::unique_ptr<ByteStream> stream_;
    std::string separator_;
    std::string text_;  // read but not given out: from begin_ on
    std::size_t begin_ = 0;
    bool at_end_ = false;
    bool starts_document_ = true;
};

class JsonLineDocuments final : public DocumentSource {
  public:
    JsonLineDocuments(const std::string& path, const TextConfig& config)
        : path_(path), column_(config.column), stream_(open_text_stream(path, config.encoding)) {}

    std::optional<Fragment> next() override {
        while (given_ == document_.size()) {
            const std::optional<std::string> line = next_line();
            if (!line) return std::nullopt;
            if (is_blank(*line)) continue;
            check_one_line(*line);
            document_ = text_of(*line);
            given_ = is_blank(document_) ? document_.size() : 0;
            starts_document_ = true;
        }
        const std::string_view rest = std::string_view(document_).substr(given_);
        std::size_t length = rest.size();
        if (length > 2 * fragment_bytes) {
            if (const std::size_t at = cut_place(rest, fragment_bytes); at > 0)
                length = at;
            else if (length > longest_fragment_bytes)
                length = forced_place(rest, longest_fragment_bytes);
        }
        given_ += length;
        return Fragment{
            std::exchange(starts_document_, false), std::string(rest.substr(0, length)), {}};
    }

  private:
    std::optional<std::string> next_line() {
        std::size_t searched = 0;
        while (true) {
            const std::size_t end = buffer_.find('\n', begin_ + searched);
            if (end != std::string::npos) {
                std::string line = buffer_.substr(begin_, end - begin_);
                begin_ = end + 1;
                ++line_;
                return line;
            }
            if (buffer_.size() - begin_ > longest_line_bytes)
                user_error("{}:{}: the line has more than {} bytes, expected one document a line",
                           path_, line_ + 1, longest_line_bytes);
            buffer_.erase(0, std::exchange(begin_, 0));
            searched = buffer_.size();
            buffer_.resize(searched + read_bytes);
            const Index got = stream_->read(buffer_.data() + searched, read_bytes);
            buffer_.resize(searched + static_cast<std::size_t>(got));
            if (got == 0) {
                if (buffer_.empty()) return std::nullopt;
                ++line_;
                return std::exchange(buffer_, {});
            }
        }
    }
    // A .json file under the name of a .jsonl.
    void check_one_line(const std::string& line) const {
        const std::size_t first = line.find_first_not_of(" \t\r");
        const bool alone = line.find_first_not_of(" \t\r", first + 1) == std::string::npos;
        if (line[first] == '[' && line_ == 1)
            user_error(
                "{}: is a JSON list, expected an object a line: jq -c '.[]' makes such a file",
                path_);
        if (line[first] == '{' && alone)
            user_error(
                "{}:{}: an object over several lines, expected one a line: jq -c . makes such a "
                "file",
                path_, line_);
    }
    std::string text_of(const std::string& line) const {
        const JsonObject json = JsonObject::parse_line(line, path_, line_);
        if (!json.json().contains(column_)) {
            std::string keys;
            constexpr std::size_t most_bytes = 400;
            for (const auto& [key, value] : json.json().items())
                if (keys.size() < most_bytes) keys += (keys.empty() ? "" : ", ") + shown(Json(key));
            user_error("{}:{}: there is no key \"{}\" (text.column); the keys are: {}", path_,
                       line_, column_, keys);
        }
        return json.has(column_) ? json.text(column_) : std::string();
    }

    std::string path_;
    std::string column_;
    std::unique_ptr<ByteStream> stream_;
    std::string buffer_;
    std::size_t begin_ = 0;
    Index line_ = 0;
    std::string document_;
    std::size_t given_ = 0;  // bytes of it
    bool starts_document_ = true;
};

}  // namespace

TextFormat text_format(const std::string& path) {
    for (const std::string_view end : {".incomplete", ".part", ".partial", ".crdownload",
                                       ".download", ".aria2", ".tmp", ".lock"})
        if (path.ends_with(end))
            user_error("{}: by its name a download that did not end: fetch it again", path);
    for (const std::string_view end :
         {".xz", ".bz2", ".lz4", ".lzma", ".zip", ".7z", ".tar", ".tgz"})
        if (path.ends_with(end))
            user_error("{}: {} is not read: unpack it, or compress it anew with zstd or gzip", path,
                       end);
    for (const std::string_view end : {".parquet", ".arrow", ".json", ".csv", ".tsv"})
        if (path.ends_with(end))
            user_error("{}: {} is not read: write its text as .jsonl, one object a line", path,
                       end);
    std::string_view name = path;
    for (const std::string_view packed : {".gz", ".zst"})
        if (name.ends_with(packed)) name.remove_suffix(packed.size());
    if (name.ends_with(".txt")) return TextFormat::text;
    if (name.ends_with(".jsonl")) return TextFormat::json_lines;
    if (path.ends_with(".npy")) return TextFormat::numpy;
    if (path.ends_with(".bin")) return TextFormat::binary;
    user_error(
        "{}: unknown kind of text file, expected .txt or .jsonl (also with .gz or .zst), .npy or "
        ".bin",
        path);
}

std::unique_ptr<DocumentSource> open_documents(const std::string& path, const TextConfig& config,
                                               Index vocabulary) {
    switch (text_format(path)) {
        case TextFormat::text:
            return std::make_unique<TextDocuments>(path, config);
        case TextFormat::json_lines:
            return std::make_unique<JsonLineDocuments>(path, config);
        case TextFormat::numpy:
        case TextFormat::binary:
            return open_token_file(path, config, vocabulary);
    }
    return nullptr;
}

}  // namespace clt
