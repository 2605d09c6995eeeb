// Ids against those of the Python library `tokenizers` 0.23 (the tables below were printed by it).
#include "lm/tokenizer.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"
#include "clt/base/utf8.hpp"
#include "clt/io/file.hpp"
#include "lm/byte_level.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using test::message_of;
using test::Scratch;
using Ids = std::vector<std::int32_t>;

const std::string model_folder = CLT_SOURCE_DIR "/examples/tiny-gpt2";

struct Golden {
    std::string_view text;
    Ids ids;
};

const std::vector<Golden> tiny_gpt2 = {
    {"", {}},
    {" ", {221}},
    {"  ", {355}},
    {"\012", {199}},
    {" \012", {221, 199}},
    {"a  ", {65, 355}},
    {"  a", {221, 259}},
    {"a \012 b", {65, 221, 199, 270}},
    {"a\012\012\012b", {65, 891, 199, 66}},
    {"\011\011x\015\012", {198, 198, 88, 202, 199}},
    {"I'm you're they've he'll we'd it's don't I'M 'tis ''s",
     {41,  7,   77,  332, 7,   265, 386, 7,    304, 295, 1308, 335, 569, 333,
      399, 286, 275, 907, 303, 7,   45,  1162, 84,  276, 1162, 7,   83}},
    {"na\303\257ve caf\303\251 \342\200\224 \342\200\234quote\342\200\235",
     {78,  65,  128, 108, 304, 2037, 70,  128,  103, 221, 159,
      223, 243, 221, 159, 223, 251,  455, 1319, 159, 223, 252}},
    {"\346\227\245\346\234\254\350\252\236", {163, 246, 99, 163, 251, 106, 165, 104, 253}},
    {"\360\237\231\202\360\237\221\251\342\200\215\360\237\221\247",
     {173, 254, 248, 225, 173, 254, 240, 103, 159, 223, 236, 173, 254, 240, 101}},
    {"\331\241\331\242\331\243 \342\205\267 \302\275 42nd 3.14e-10",
     {150, 95, 150, 96,  150,  97, 221, 159, 228, 116, 221, 127, 122,
      221, 20, 18,  264, 1735, 14, 17,  20,  69,  13,  17,  16}},
    {"<|endoftext|>", {0}},
    {"a<|endoftext|> b<|endoftext|><|endoftext|", {65, 0, 270, 0, 28, 92, 612, 601, 715, 976, 92}},
    {"x\302\240y\343\200\200z\341\240\216v\302\205u\342\200\213t",
     {88, 127, 255, 89, 160, 223, 223, 90, 158, 255, 237, 86, 127, 228, 85, 159, 223, 234, 84}},
    {std::string_view("\000\001\177", 3), {189, 190, 222}},
    {"e\314\201", {69, 137, 224}},
    {"foo__bar-baz(qux);//",
     {70, 79, 79, 63, 63, 66, 289, 13, 66, 1530, 8, 455, 88, 9, 27, 15, 15}},
    {"\034\035 a", {217, 218, 259}},
    {"\342\200\250\342\200\246\342\200\251", {159, 223, 102, 159, 223, 100, 159, 223, 103}},
};

// Bytes that are not UTF-8, and what Python's bytes.decode(errors="replace") makes of them.
const std::vector<std::pair<std::string, std::string>> broken_utf8 = {
    {"\377", "\357\277\275"},
    {"a\303", "a\357\277\275"},
    {"\342\202", "\357\277\275"},
    {"\342\202a", "\357\277\275a"},
    {"\360\237\230", "\357\277\275"},
    {"\355\240\200", "\357\277\275\357\277\275\357\277\275"},
    {"\300\257", "\357\277\275\357\277\275"},
    {"\364\220\200\200", "\357\277\275\357\277\275\357\277\275\357\277\275"},
    {"ok \200\201 ok", "ok \357\277\275\357\277\275 ok"},
    {"\360\200\200x", "\357\277\275\357\277\275\357\277\275x"},
};

std::uint64_t fnv1a(const Ids& ids) {
    std::uint64_t hash = 0xCBF29CE484222325U;
    for (const std::int32_t id : ids)
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ ((static_cast<std::uint32_t>(id) >> shift) & 0xFFU)) * 0x100000001B3U;
    return hash;
}

// Byte b has the id b; five merges, and added tokens that overlap.
nlohmann::json small_tokenizer(bool add_prefix_space, bool ignore_merges) {
    nlohmann::json vocabulary;
    for (int byte = 0; byte < 256; ++byte)
        vocabulary[spelling_of_byte(static_cast<unsigned char>(byte))] = byte;
    int next = 256;
    for (const char* token : {"ab", "abc", "bc", "Ġab", "Ġabcd", "cd"}) vocabulary[token] = next++;
    const auto added = [](int id, const char* content, bool special, bool normalized) {
        return nlohmann::json{
            {"id", id}, {"content", content}, {"special", special}, {"normalized", normalized}};
    };
    return {{"added_tokens",
             {added(262, "<s>", true, false), added(263, "<s>x", false, true),
              added(264, "zz", false, true), added(265, "zzz", false, true)}},
            {"normalizer", nullptr},
            {"pre_tokenizer",
             {{"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"use_regex", true}}},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model",
             {{"type", "BPE"},
              {"ignore_merges", ignore_merges},
              {"vocab", vocabulary},
              {"merges", {"b c", "a b", "Ġ ab", {"ab", "c"}, "c d"}}}}};
}

class SmallTokenizer {
  public:
    explicit SmallTokenizer(const nlohmann::json& json) : path_(scratch_ / "tokenizer.json") {
        write_file(path_, json.dump());
    }
    Tokenizer open() const { return Tokenizer(path_); }
    const std::string& path() const { return path_; }

  private:
    Scratch scratch_;
    std::string path_;
};

std::string refusal(const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = small_tokenizer(false, false);
    change(json);
    const SmallTokenizer tokenizer(json);
    const std::string message = message_of<UserError>([&] { tokenizer.open(); });
    EXPECT_TRUE(message.starts_with(tokenizer.path() + ": ")) << message;
    return message.substr(std::min(message.size(), tokenizer.path().size() + 2));
}

TEST(Tokenizer, GivesTheLibrarysIdsOnOddStrings) {
    Tokenizer tokenizer(model_folder + "/tokenizer.json");
    for (const Golden& golden : tiny_gpt2) {
        EXPECT_EQ(tokenizer.encode(golden.text), golden.ids) << golden.text;
        EXPECT_EQ(tokenizer.encode(golden.text), golden.ids) << "from the cache: " << golden.text;
        EXPECT_EQ(tokenizer.decode(golden.ids), golden.text);
    }
}

TEST(Tokenizer, GivesTheLibrarysIdsOnTheTextsAndDecodesThemBack) {
    Tokenizer tokenizer(model_folder + "/tokenizer.json");
    const std::string train = read_file(model_folder + "/train.txt");
    const std::string heldout = read_file(model_folder + "/heldout.txt");
    const Ids train_ids = tokenizer.encode(train);
    const Ids heldout_ids = tokenizer.encode(heldout);
    EXPECT_EQ(train_ids.size(), 970168U);
    EXPECT_EQ(fnv1a(train_ids), 0x6FAC56128B2293B8U);
    EXPECT_EQ(heldout_ids.size(), 130372U);
    EXPECT_EQ(fnv1a(heldout_ids), 0x2EA3360E69D9E100U);
    EXPECT_EQ(tokenizer.decode(train_ids), train);
    EXPECT_EQ(tokenizer.decode(heldout_ids), heldout);

    // The probe of expected.json is the beginning of the held-out text behind a BOS.
    const auto expected = nlohmann::json::parse(read_file(model_folder + "/expected.json"));
    const auto probe = expected["probe_ids"].get<Ids>();
    EXPECT_EQ(probe.front(), 0);
    EXPECT_TRUE(std::equal(probe.begin() + 1, probe.end(), heldout_ids.begin()));
}

TEST(Tokenizer, BrokenUtf8BecomesReplacementCharacters) {
    Tokenizer tokenizer(model_folder + "/tokenizer.json");
    for (const auto& [broken, repaired] : broken_utf8) {
        EXPECT_EQ(repair_utf8(broken), repaired);
        EXPECT_EQ(repair_utf8(repaired), repaired);
        EXPECT_EQ(tokenizer.encode(broken), tokenizer.encode(repaired));
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(broken)), repaired);
    }
}

TEST(Tokenizer, LongRunsAndLongWordsWork) {
    Tokenizer tokenizer(model_folder + "/tokenizer.json");
    for (const std::string& text : {std::string(1 << 20, ' ') + "x", std::string(1 << 20, 'a'),
                                    std::string(1 << 20, '\n'), std::string(1 << 20, '.')}) {
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    }
}

TEST(Tokenizer, PrefixSpaceIgnoredMergesAndAddedTokensAsInTheLibrary) {
    struct Case {
        std::string_view text;
        Ids plain, ignoring, prefixed, prefixed_ignoring;
    };
    const std::vector<Case> cases = {
        {"abc", {97, 258}, {257}, {32, 97, 258}, {32, 97, 258}},
        {"abcd", {97, 258, 100}, {97, 258, 100}, {32, 97, 258, 100}, {260}},
        {" abcd", {32, 97, 258, 100}, {260}, {32, 97, 258, 100}, {260}},
        {"ab ab", {256, 259}, {256, 259}, {259, 259}, {259, 259}},
        {"aab", {97, 256}, {97, 256}, {32, 97, 256}, {32, 97, 256}},
        {"<s>xab", {262, 120, 256}, {262, 120, 256}, {262, 32, 120, 256}, {262, 32, 120, 256}},
        {"zzzzz", {265, 264}, {265, 264}, {265, 264}, {265, 264}},
        {"abzz zzab<s> ab",
         {256, 264, 32, 264, 256, 262, 259},
         {256, 264, 32, 264, 256, 262, 259},
         {259, 264, 32, 264, 259, 262, 259},
         {259, 264, 32, 264, 259, 262, 259}},
        {"", {}, {}, {}, {}},
    };
    Tokenizer plain = SmallTokenizer(small_tokenizer(false, false)).open();
    Tokenizer ignoring = SmallTokenizer(small_tokenizer(false, true)).open();
    Tokenizer prefixed = SmallTokenizer(small_tokenizer(true, false)).open();
    Tokenizer prefixed_ignoring = SmallTokenizer(small_tokenizer(true, true)).open();
    for (const Case& c : cases) {
        EXPECT_EQ(plain.encode(c.text), c.plain) << c.text;
        EXPECT_EQ(ignoring.encode(c.text), c.ignoring) << c.text;
        EXPECT_EQ(prefixed.encode(c.text), c.prefixed) << c.text;
        EXPECT_EQ(prefixed_ignoring.encode(c.text), c.prefixed_ignoring) << c.text;
    }
    EXPECT_EQ(plain.special_ids(), Ids{262});
    EXPECT_EQ(plain.vocabulary(), 266);
    EXPECT_EQ(plain.id_of("zzz"), 265);
    EXPECT_EQ(plain.id_of("nothing"), std::nullopt);
}

TEST(Tokenizer, TextCutBeforeWhiteSpaceGivesTheSameIds) {
    for (const bool prefix : {false, true}) {
        Tokenizer tokenizer = SmallTokenizer(small_tokenizer(prefix, false)).open();
        const std::string text = "abc ab\n\n ab <s>abcd\nzz";
        const Ids whole = tokenizer.encode(text);
        for (std::size_t cut = 1; cut < text.size(); ++cut) {
            const auto white = [&](std::size_t i) { return text[i] == ' ' || text[i] == '\n'; };
            if (white(cut - 1) || !white(cut)) continue;
            Ids parts;
            tokenizer.encode(std::string_view(text).substr(0, cut), parts);
            tokenizer.encode(std::string_view(text).substr(cut), parts, true);
            EXPECT_EQ(parts, whole) << "prefix " << prefix << ", cut at " << cut;
        }
    }
}

TEST(Tokenizer, RefusesWhatItCannotDoInOneSentence) {
    using nlohmann::json;
    EXPECT_EQ(refusal([](json& j) { j["model"]["type"] = "Unigram"; }),
              "model \"Unigram\" is not supported, expected \"BPE\"");
    EXPECT_EQ(refusal([](json& j) {
                  j["normalizer"] = {{"type", "NFC"}};
              }),
              "normalizer \"NFC\" is not supported, expected null");
    EXPECT_EQ(refusal([](json& j) {
                  j["pre_tokenizer"] = {{"type", "Metaspace"}};
              }),
              "pre_tokenizer \"Metaspace\" is not supported, expected \"ByteLevel\"");
    EXPECT_EQ(refusal([](json& j) { j["pre_tokenizer"]["use_regex"] = false; }),
              "pre_tokenizer ByteLevel with use_regex = false is not supported, expected true");
    EXPECT_EQ(refusal([](json& j) {
                  j["decoder"] = {{"type", "WordPiece"}};
              }),
              "decoder \"WordPiece\" is not supported, expected \"ByteLevel\"");
    EXPECT_EQ(refusal([](json& j) { j["model"]["dropout"] = 0.1; }),
              "model.dropout is not supported, expected null");
    EXPECT_EQ(refusal([](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }),
              "model.end_of_word_suffix is not supported, expected none");
    EXPECT_EQ(refusal([](json& j) { j["model"].erase("merges"); }),
              "model.merges is missing, expected a list");
    EXPECT_EQ(refusal([](json& j) { j.erase("model"); }), "model is missing, expected an object");
    EXPECT_EQ(refusal([](json& j) { j["model"]["vocab"].erase("a"); }),
              "model.vocab is not byte-level: the byte \"a\" is not in the vocabulary");
    EXPECT_EQ(refusal([](json& j) { j["model"]["merges"].push_back("x y"); }),
              "model.merges: merged token \"xy\" is not in the vocabulary");
    EXPECT_EQ(refusal([](json& j) { j["model"]["merges"].push_back("xy"); }),
              "model.merges: \"xy\" is not two tokens with a space between");
    EXPECT_EQ(refusal([](json& j) { j["model"]["vocab"]["b"] = 97; }),
              "model.vocab: id 97 is given twice");
    EXPECT_EQ(refusal([](json& j) { j["added_tokens"][0]["lstrip"] = true; }),
              "added token \"<s>\" has lstrip = true, which is not supported");
    EXPECT_EQ(refusal([](json& j) { j["added_tokens"][0].erase("id"); }),
              "added_tokens[0].id is missing, expected a whole number");
    EXPECT_EQ(refusal([](json& j) { j["model"] = 3; }), "model = 3, expected an object");
    EXPECT_EQ(refusal([](json& j) { j["pre_tokenizer"]["type"] = 3; }),
              "pre_tokenizer.type = 3, expected a text");

    const Scratch scratch;
    write_file(scratch / "tokenizer.json", "{\"model\": ");
    EXPECT_EQ(message_of<UserError>([&] { Tokenizer(scratch / "tokenizer.json"); }),
              (scratch / "tokenizer.json") + ":1:11: ends in the middle of an object: cut");
    EXPECT_NE(message_of<UserError>([&] { Tokenizer(scratch / "none.json"); }).find("none.json"),
              std::string::npos);
    const Tokenizer tokenizer(model_folder + "/tokenizer.json");
    EXPECT_NE(message_of<UserError>([&] {
                  tokenizer.decode(Ids{1, 2048});
              }).find("no token has the id 2048"),
              std::string::npos);
}

}  // namespace
}  // namespace clt
