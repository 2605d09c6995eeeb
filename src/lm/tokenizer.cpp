#include "lm/tokenizer.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/base/utf8.hpp"
#include "clt/io/file.hpp"
#include "clt/io/json.hpp"
#include "lm/bpe.hpp"
#include "lm/byte_level.hpp"

namespace clt {
namespace {

// Words seen often are merged once. Longer words and a full cache are not worth the memory.
constexpr std::size_t cached_word_bytes = 48;
constexpr std::size_t cached_words = std::size_t{1} << 20;
constexpr Index most_id = std::numeric_limits<std::int32_t>::max() - 1;

struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
        return std::hash<std::string_view>()(text);
    }
};
template <class T>
using TextMap = std::unordered_map<std::string, T, TextHash, std::equal_to<>>;

// Finds added tokens in text: the leftmost, and the longest of those that start there.
class AddedTokens {
  public:
    void add(const std::string& content, std::int32_t id) {
        auto& same_start = by_first_byte_[static_cast<unsigned char>(content.front())];
        same_start.push_back({content, id});
        std::sort(same_start.begin(), same_start.end(), [](const Token& a, const Token& b) {
            return a.content.size() > b.content.size();
        });
    }

    // Calls part(text between) and token(id) in order.
    template <class Part, class OnToken>
    void split(std::string_view text, Part&& part, OnToken&& token) const {
        std::size_t begin = 0;
        for (std::size_t at = 0; at < text.size();) {
            const Token* found = match(text.substr(at));
            if (found == nullptr) {
                ++at;
                continue;
            }
            if (at > begin) part(text.substr(begin, at - begin));
            token(found->id);
            at += found->content.size();
            begin = at;
        }
        if (begin < text.size()) part(text.substr(begin));
    }

  private:
    struct Token {
        std::string content;
        std::int32_t id = 0;
    };
    const Token* match(std::string_view text) const {
        for (const Token& token : by_first_byte_[static_cast<unsigned char>(text.front())])
            if (text.starts_with(token.content)) return &token;
        return nullptr;
    }
    std::array<std::vector<Token>, 256> by_first_byte_;
};

}  // namespace

struct Tokenizer::Impl {
    explicit Impl(const std::string& path);

    void read_model(const JsonObject& model);
    void read_added(const std::vector<JsonObject>& added);
    void check_pipeline(const JsonObject& json);
    std::int32_t known(std::string_view spelling, const char* where) const;
    template <class... Args>
    [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
        user_error("{}: {}", path, fmt::format(format, std::forward<Args>(args)...));
    }

    void encode_piece(std::string_view text, bool continued, std::vector<std::int32_t>& ids);
    void encode_word(std::string_view word, std::vector<std::int32_t>& ids);

    std::string path;
    std::string fingerprint;
    TextMap<std::int32_t> id_of_spelling;
    TextMap<std::int32_t> id_of_bytes;                          // for ignore_merges
    std::unordered_map<std::int32_t, std::string> bytes_of_id;  // ids may be sparse
    std::vector<std::int32_t> special_ids;
    AddedTokens raw_added;  // matched first, then the rest
    AddedTokens normalized_added;
    bool add_prefix_space = false;
    bool ignore_merges = false;
    std::optional<Bpe> bpe;
    WordSplitter splitter;
    TextMap<std::vector<std::int32_t>> cache;
};

Tokenizer::Impl::Impl(const std::string& file) : path(file) {
    const std::string bytes = read_file(path, json_file_bytes);
    fingerprint = fingerprint_of(bytes);
    const JsonObject json = JsonObject::parse(bytes, path);
    check_pipeline(json);
    read_model(json.object("model"));
    if (json.has("added_tokens")) read_added(json.objects("added_tokens"));
}

void Tokenizer::Impl::check_pipeline(const JsonObject& json) {
    const auto type_at = [&](const char* key) -> std::string {
        return json.has(key) ? json.object(key).text_or("type", "?") : "";
    };
    if (const std::string type = type_at("normalizer"); !type.empty())
        refuse("normalizer \"{}\" is not supported, expected null", type);
    if (const std::string type = type_at("pre_tokenizer"); type != "ByteLevel")
        refuse("pre_tokenizer \"{}\" is not supported, expected \"ByteLevel\"", type);
    if (const std::string type = type_at("decoder"); !type.empty() && type != "ByteLevel")
        refuse("decoder \"{}\" is not supported, expected \"ByteLevel\"", type);
    const JsonObject pre = json.object("pre_tokenizer");
    add_prefix_space = pre.flag_or("add_prefix_space", true);
    if (!pre.flag_or("use_regex", true))
        refuse("pre_tokenizer ByteLevel with use_regex = false is not supported, expected true");
}

std::int32_t Tokenizer::Impl::known(std::string_view spelling, const char* where) const {
    const auto found = id_of_spelling.find(spelling);
    if (found == id_of_spelling.end())
        refuse("{} \"{}\" is not in the vocabulary", where, spelling);
    return found->second;
}

void Tokenizer::Impl::read_model(const JsonObject& model) {
    const std::string type = model.text_or("type", "BPE");
    if (type != "BPE") refuse("model \"{}\" is not supported, expected \"BPE\"", type);
    if (model.finite_or("dropout", 0) != 0) refuse("model.dropout is not supported, expected null");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
        if (!model.text_or(key, "").empty())
            refuse("model.{} is not supported, expected none", key);
    ignore_merges = model.flag_or("ignore_merges", false);
    const JsonObject vocabulary = model.object("vocab");
    const Json& merges = model.list("merges");

    for (const auto& [spelling, unused] : vocabulary.json().items()) {
        const auto id = static_cast<std::int32_t>(vocabulary.integer(spelling, 0, most_id));
        const std::optional<std::string> spelled = bytes_of_spelling(spelling);
        if (!bytes_of_id.emplace(id, spelled.value_or(spelling)).second)
            refuse("model.vocab: id {} is given twice", id);
        id_of_spelling.emplace(spelling, id);
        if (spelled) id_of_bytes.emplace(*spelled, id);
    }
    std::vector<std::int32_t> byte_ids;
    for (int byte = 0; byte < 256; ++byte)
        byte_ids.push_back(known(spelling_of_byte(static_cast<unsigned char>(byte)),
                                 "model.vocab is not byte-level: the byte"));
    bpe.emplace(std::move(byte_ids));
    for (const Json& merge : merges) {
        std::string left;
        std::string right;
        if (merge.is_string()) {
            const auto& line = merge.get_ref<const std::string&>();
            const std::size_t space = line.find(' ');
            if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
                refuse("model.merges: \"{}\" is not two tokens with a space between", line);
            left = line.substr(0, space);
            right = line.substr(space + 1);
        } else if (merge.is_array() && merge.size() == 2) {
            left = json_text(merge[0], path + ": model.merges: token");
            right = json_text(merge[1], path + ": model.merges: token");
        } else {
            refuse("model.merges: {} is not a pair of tokens", shown(merge));
        }
        bpe->add_merge(known(left, "model.merges: token"), known(right, "model.merges: token"),
                       known(left + right, "model.merges: merged token"));
    }
}

void Tokenizer::Impl::read_added(const std::vector<JsonObject>& added) {
    for (const JsonObject& token : added) {
        const std::string content = token.text("content");
        const auto id = static_cast<std::int32_t>(token.integer("id", 0, most_id));
        if (content.empty()) continue;
        for (const char* flag : {"single_word", "lstrip", "rstrip"})
            if (token.flag_or(flag, false))
                refuse("added token \"{}\" has {} = true, which is not supported", content, flag);
        // The ByteLevel decoder reads an added token like any other: as a spelling where it is one.
        bytes_of_id[id] = bytes_of_spelling(content).value_or(content);
        id_of_spelling.insert_or_assign(content, id);
        (token.flag_or("normalized", true) ? normalized_added : raw_added).add(content, id);
        if (token.flag_or("special", false)) special_ids.push_back(id);
    }
    std::sort(special_ids.begin(), special_ids.end());
    special_ids.erase(std::unique(special_ids.begin(), special_ids.end()), special_ids.end());
}

void Tokenizer::Impl::encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
    const bool cacheable = word.size() <= cached_word_bytes;
    if (cacheable) {
        if (const auto found = cache.find(word); found != cache.end()) {
            ids.insert(ids.end(), found->second.begin(), found->second.end());
            return;
        }
    }
    const std::size_t before = ids.size();
    const auto whole = ignore_merges ? id_of_bytes.find(word) : id_of_bytes.end();
    if (whole != id_of_bytes.end())
        ids.push_back(whole->second);
    else
        bpe->encode(word, ids);
    if (cacheable) {
        if (cache.size() >= cached_words) cache.clear();
        cache.emplace(word, std::vector<std::int32_t>(
                                ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end()));
    }
}

void Tokenizer::Impl::encode_piece(std::string_view text, bool continued,
                                   std::vector<std::int32_t>& ids) {
    std::string prefixed;
    if (add_prefix_space && !continued && !text.starts_with(' ')) {
        prefixed.reserve(text.size() + 1);
        prefixed.append(" ").append(text);
        text = prefixed;
    }
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t length = splitter.next(text, at);
        encode_word(text.substr(at, length), ids);
        at += length;
    }
}

Tokenizer::Tokenizer(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

void Tokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids, bool continued) {
    std::string repaired;
    if (valid_utf8_prefix(text) != text.size()) {
        repaired = repair_utf8(text);
        text = repaired;
    }
    const char* const start = text.data();
    const auto push = [&](std::int32_t id) { ids.push_back(id); };
    const auto words = [&](std::string_view piece) {
        impl_->encode_piece(piece, continued && piece.data() == start, ids);
    };
    impl_->raw_added.split(
        text, [&](std::string_view part) { impl_->normalized_added.split(part, words, push); },
        push);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) {
    std::vector<std::int32_t> ids;
    encode(text, ids);
    return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
    std::string bytes;
    for (const std::int32_t id : ids) {
        const auto found = impl_->bytes_of_id.find(id);
        if (found == impl_->bytes_of_id.end())
            user_error("{}: no token has the id {}", impl_->path, id);
        bytes += found->second;
    }
    return repair_utf8(bytes);
}

Index Tokenizer::vocabulary() const {
    Index most = -1;
    for (const auto& [id, unused] : impl_->bytes_of_id) most = std::max<Index>(most, id);
    return most + 1;
}

std::optional<std::int32_t> Tokenizer::id_of(std::string_view token) const {
    const auto found = impl_->id_of_spelling.find(token);
    if (found == impl_->id_of_spelling.end()) return std::nullopt;
    return found->second;
}

const std::vector<std::int32_t>& Tokenizer::special_ids() const {
    return impl_->special_ids;
}

const std::string& Tokenizer::fingerprint() const {
    return impl_->fingerprint;
}

}  // namespace clt
