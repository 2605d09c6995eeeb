#include "lm/tokenizer.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "lm/bpe.hpp"
#include "lm/byte_level.hpp"
#include "lm/utf8.hpp"

namespace clt {
namespace {

using Json = nlohmann::json;

// Words seen often are merged once. Longer words and a full cache are not worth the memory.
constexpr std::size_t cached_word_bytes = 48;
constexpr std::size_t cached_words = std::size_t{1} << 20;

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

    void read_model(const Json& model);
    void read_added(const Json& added);
    void check_pipeline(const Json& json);
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
    TextMap<std::int32_t> id_of_bytes;  // for ignore_merges
    std::vector<std::optional<std::string>> bytes_of_id;
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
    const std::string bytes = read_file(path);
    fingerprint = fingerprint_of(bytes);
    const Json json = Json::parse(bytes, nullptr, false);
    if (!json.is_object()) refuse("not a JSON object, expected a Hugging Face tokenizer");
    try {
        check_pipeline(json);
        if (!json.contains("model")) refuse("has no \"model\"");
        read_model(json["model"]);
        if (json.contains("added_tokens") && !json["added_tokens"].is_null())
            read_added(json["added_tokens"]);
    } catch (const Json::exception& e) {
        refuse("unexpected content ({})", e.what());
    }
}

void Tokenizer::Impl::check_pipeline(const Json& json) {
    const auto type_at = [&](const char* key) -> std::string {
        if (!json.contains(key) || json[key].is_null()) return "";
        return json[key].value("type", std::string("?"));
    };
    if (const std::string type = type_at("normalizer"); !type.empty())
        refuse("normalizer \"{}\" is not supported, expected null", type);
    if (const std::string type = type_at("pre_tokenizer"); type != "ByteLevel")
        refuse("pre_tokenizer \"{}\" is not supported, expected \"ByteLevel\"", type);
    if (const std::string type = type_at("decoder"); !type.empty() && type != "ByteLevel")
        refuse("decoder \"{}\" is not supported, expected \"ByteLevel\"", type);
    const Json& pre = json["pre_tokenizer"];
    add_prefix_space = pre.value("add_prefix_space", true);
    if (!pre.value("use_regex", true))
        refuse("pre_tokenizer ByteLevel with use_regex = false is not supported, expected true");
}

std::int32_t Tokenizer::Impl::known(std::string_view spelling, const char* where) const {
    const auto found = id_of_spelling.find(spelling);
    if (found == id_of_spelling.end())
        refuse("{} \"{}\" is not in the vocabulary", where, spelling);
    return found->second;
}

void Tokenizer::Impl::read_model(const Json& model) {
    const std::string type = model.value("type", std::string("BPE"));
    if (type != "BPE") refuse("model \"{}\" is not supported, expected \"BPE\"", type);
    if (model.contains("dropout") && !model["dropout"].is_null() && model["dropout"] != 0.0)
        refuse("model.dropout is not supported, expected null");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
        if (model.contains(key) && !model[key].is_null() && model[key] != nlohmann::json(""))
            refuse("model.{} is not supported, expected none", key);
    ignore_merges = model.value("ignore_merges", false);
    if (!model.contains("vocab") || !model["vocab"].is_object())
        refuse("model.vocab is missing, expected an object of token: id");
    if (!model.contains("merges") || !model["merges"].is_array())
        refuse("model.merges is missing, expected a list of pairs");

    const Json& vocabulary = model["vocab"];
    bytes_of_id.resize(vocabulary.size());
    for (const auto& [spelling, value] : vocabulary.items()) {
        const Index id = value.is_number_integer() ? value.get<Index>() : -1;
        if (id < 0 || id > 0x7FFFFFF)
            refuse("model.vocab: id of \"{}\" is {}, expected an integer from 0", spelling,
                   value.dump());
        if (static_cast<std::size_t>(id) >= bytes_of_id.size())
            bytes_of_id.resize(static_cast<std::size_t>(id) + 1);
        auto& bytes = bytes_of_id[static_cast<std::size_t>(id)];
        if (bytes) refuse("model.vocab: id {} is given twice", id);
        const std::optional<std::string> spelled = bytes_of_spelling(spelling);
        bytes = spelled.value_or(spelling);
        id_of_spelling.emplace(spelling, static_cast<std::int32_t>(id));
        if (spelled) id_of_bytes.emplace(*spelled, static_cast<std::int32_t>(id));
    }
    std::vector<std::int32_t> byte_ids;
    for (int byte = 0; byte < 256; ++byte)
        byte_ids.push_back(known(spelling_of_byte(static_cast<unsigned char>(byte)),
                                 "model.vocab is not byte-level: the byte"));
    bpe.emplace(std::move(byte_ids));
    for (const Json& merge : model["merges"]) {
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
            left = merge[0].get<std::string>();
            right = merge[1].get<std::string>();
        } else {
            refuse("model.merges: {} is not a pair of tokens", merge.dump());
        }
        bpe->add_merge(known(left, "model.merges: token"), known(right, "model.merges: token"),
                       known(left + right, "model.merges: merged token"));
    }
}

void Tokenizer::Impl::read_added(const Json& added) {
    for (const Json& token : added) {
        const auto content = token.at("content").get<std::string>();
        const Index id = token.at("id").get<Index>();
        if (content.empty()) continue;
        if (id < 0 || id > 0x7FFFFFF)
            refuse("added_tokens: id of \"{}\" is {}, expected an integer from 0", content, id);
        for (const char* flag : {"single_word", "lstrip", "rstrip"})
            if (token.value(flag, false))
                refuse("added token \"{}\" has {} = true, which is not supported", content, flag);
        const auto short_id = static_cast<std::int32_t>(id);
        if (static_cast<std::size_t>(id) >= bytes_of_id.size())
            bytes_of_id.resize(static_cast<std::size_t>(id) + 1);
        // The ByteLevel decoder reads an added token like any other: as a spelling where it is one.
        bytes_of_id[static_cast<std::size_t>(id)] = bytes_of_spelling(content).value_or(content);
        id_of_spelling.insert_or_assign(content, short_id);
        (token.value("normalized", true) ? normalized_added : raw_added).add(content, short_id);
        if (token.value("special", false)) special_ids.push_back(short_id);
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
        if (id < 0 || id >= vocabulary() || !impl_->bytes_of_id[static_cast<std::size_t>(id)])
            user_error("{}: no token has the id {}", impl_->path, id);
        bytes += *impl_->bytes_of_id[static_cast<std::size_t>(id)];
    }
    return repair_utf8(bytes);
}

Index Tokenizer::vocabulary() const {
    return static_cast<Index>(impl_->bytes_of_id.size());
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
