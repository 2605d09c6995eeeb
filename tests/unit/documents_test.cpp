// Documents out of every kind of text file, whole, cut and damaged.
#include "lm/documents.hpp"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <functional>

#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "lm/tokenizer.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using test::message_of;
using test::Scratch;
using Ids = std::vector<std::int32_t>;

constexpr Index vocabulary = 100000;

// Fragments joined to documents again.
template <class T>
std::vector<T> join(const std::string& path, const TextConfig& config, T Fragment::*content,
                    std::size_t* fragments = nullptr) {
    std::vector<T> documents;
    const auto source = open_documents(path, config, vocabulary);
    while (const auto fragment = source->next()) {
        if (fragment->starts_document) documents.emplace_back();
        const T& part = (*fragment).*content;
        EXPECT_FALSE(part.empty());
        EXPECT_FALSE(documents.empty()) << "the first fragment goes on with nothing";
        if (documents.empty()) documents.emplace_back();
        documents.back().insert(documents.back().end(), part.begin(), part.end());
        if (fragments != nullptr) ++*fragments;
    }
    return documents;
}

std::vector<std::string> texts(const std::string& path, const TextConfig& config = {}) {
    return join(path, config, &Fragment::text);
}

std::string gzip(const std::string& text) {
    z_stream state{};
    deflateInit2(&state, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    std::string out(deflateBound(&state, text.size()) + 64, '\0');
    state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
    state.avail_in = static_cast<uInt>(text.size());
    state.next_out = reinterpret_cast<Bytef*>(out.data());
    state.avail_out = static_cast<uInt>(out.size());
    EXPECT_EQ(deflate(&state, Z_FINISH), Z_STREAM_END);
    out.resize(state.total_out);
    deflateEnd(&state);
    return out;
}

std::string zstd(const std::string& text) {
    std::string out(ZSTD_compressBound(text.size()), '\0');
    out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
    return out;
}

std::string npy(const std::string& descr, const std::string& shape, const std::string& data,
                const std::string& order = "False") {
    std::string header =
        "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
    header.resize(118, ' ');
    header.back() = '\n';
    return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(118) + '\0' + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& ids) {
    return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(T)};
}

TEST(Documents, ATextFileIsOneDocumentUnlessASeparatorIsGiven) {
    const Scratch scratch;
    const std::string path = scratch / "a.txt";
    write_file(path, "one\n\ntwo\n\n\n\nthree\n");
    EXPECT_EQ(texts(path), std::vector<std::string>{"one\n\ntwo\n\n\n\nthree\n"});
    TextConfig config;
    config.document_separator = "\n\n";
    EXPECT_EQ(texts(path, config), (std::vector<std::string>{"one", "two", "three\n"}));
    config.document_separator = "two";
    EXPECT_EQ(texts(path, config), (std::vector<std::string>{"one\n\n", "\n\n\n\nthree\n"}));
    write_file(path, " \n ");
    EXPECT_TRUE(texts(path).empty());
}

TEST(Documents, ManySmallDocumentsBesideALongOneKeepTheirBounds) {
    const Scratch scratch;
    std::vector<std::string> expected;
    std::string file;
    for (int i = 0; i < 3000; ++i) {
        expected.push_back("document " + std::to_string(i) +
                           std::string(static_cast<std::size_t>(i % 97), 'x'));
        if (i == 1500) {
            expected.back().clear();
            for (int word = 0; word < 200000; ++word) expected.back() += "word ";
        }
        file += expected.back() + "<|end|>";
    }
    TextConfig config;
    config.document_separator = "<|end|>";
    write_file(scratch / "a.txt", file);
    EXPECT_EQ(texts(scratch / "a.txt", config), expected);
    write_file(scratch / "a.txt.gz", gzip(file.substr(0, 70001)) + gzip(file.substr(70001)));
    EXPECT_EQ(texts(scratch / "a.txt.gz", config), expected);
    write_file(scratch / "a.txt.zst", zstd(file.substr(0, 70001)) + zstd(file.substr(70001)));
    EXPECT_EQ(texts(scratch / "a.txt.zst", config), expected);
}

TEST(Documents, FragmentsHaveTheIdsOfTheWhole) {
    const std::string path = CLT_SOURCE_DIR "/examples/tiny-gpt2/train.txt";
    Tokenizer tokenizer(CLT_SOURCE_DIR "/examples/tiny-gpt2/tokenizer.json");
    Ids ids;
    std::size_t fragments = 0;
    const auto source = open_documents(path, {}, vocabulary);
    while (const auto fragment = source->next()) {
        tokenizer.encode(fragment->text, ids, !fragment->starts_document);
        ++fragments;
    }
    EXPECT_GT(fragments, 5U);
    EXPECT_EQ(ids, tokenizer.encode(read_file(path)));
}

TEST(Documents, TextWithoutWhiteSpaceIsCutBetweenCharacters) {
    const Scratch scratch;
    std::string text;
    for (int i = 0; i < 6000000; ++i) text += "\xE2\x82\xAC";  // the euro sign
    write_file(scratch / "a.txt", text);
    std::size_t fragments = 0;
    const auto documents = join(scratch / "a.txt", {}, &Fragment::text, &fragments);
    EXPECT_EQ(documents, std::vector<std::string>{text});
    EXPECT_EQ(fragments, 2U);
}

TEST(Documents, JsonLinesGiveTheirColumn) {
    const Scratch scratch;
    std::string lines =
        "{\"text\": \"one\\n\\u00e9\", \"id\": 1}\n\n{\"id\": 2, \"text\": null}\r\n"
        "{\"text\": \"  \"}\n{\"text\": \"two\", \"other\": \"o\"}";
    const std::vector<std::string> expected{"one\n\xC3\xA9", "two"};
    write_file(scratch / "a.jsonl", lines);
    EXPECT_EQ(texts(scratch / "a.jsonl"), expected);
    write_file(scratch / "a.jsonl.gz", gzip(lines));
    EXPECT_EQ(texts(scratch / "a.jsonl.gz"), expected);
    write_file(scratch / "a.jsonl.zst", zstd(lines));
    EXPECT_EQ(texts(scratch / "a.jsonl.zst"), expected);

    std::string word;
    for (int i = 0; i < 100000; ++i) word += "long words ";
    write_file(scratch / "b.jsonl", "{\"t\": \"" + word + "\"}\n{\"t\": \"x\"}\n");
    TextConfig config;
    config.column = "t";
    EXPECT_EQ(texts(scratch / "b.jsonl", config), (std::vector<std::string>{word, "x"}));
}

TEST(Documents, TokenFilesGiveTheirIds) {
    const Scratch scratch;
    const std::vector<std::uint16_t> narrow{5, 6, 9, 9, 7, 40000};
    const std::vector<std::uint32_t> wide{5, 6, 9, 9, 7, 99999};
    const auto ids = [&](const std::string& path, const TextConfig& config) {
        return join(path, config, &Fragment::ids);
    };
    TextConfig config;
    write_file(scratch / "a.bin", bytes_of(narrow));
    EXPECT_EQ(ids(scratch / "a.bin", config), (std::vector<Ids>{{5, 6, 9, 9, 7, 40000}}));
    write_file(scratch / "b.bin", bytes_of(wide));
    config.token_type = "uint32";
    config.separator_token = 9;
    EXPECT_EQ(ids(scratch / "b.bin", config), (std::vector<Ids>{{5, 6}, {7, 99999}}));
    write_file(scratch / "a.npy", npy("<u2", "(6,)", bytes_of(narrow)));
    EXPECT_EQ(ids(scratch / "a.npy", {}), (std::vector<Ids>{{5, 6, 9, 9, 7, 40000}}));
    write_file(scratch / "b.npy", npy("<u4", "(2, 3)", bytes_of(wide)));
    EXPECT_EQ(ids(scratch / "b.npy", {}), (std::vector<Ids>{{5, 6, 9}, {9, 7, 99999}}));
    EXPECT_EQ(ids(scratch / "b.npy", config), (std::vector<Ids>{{5, 6}, {7, 99999}}));

    std::vector<std::uint16_t> many(200000);
    for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<std::uint16_t>(i % 50000);
    write_file(scratch / "c.bin", bytes_of(many));
    EXPECT_EQ(ids(scratch / "c.bin", {}), std::vector<Ids>{Ids(many.begin(), many.end())});
}

TEST(Documents, EveryDamageIsOneSentence) {
    const Scratch scratch;
    const auto refusal = [&](const std::string& name, const std::string& bytes,
                             const TextConfig& config = {}) {
        const std::string path = scratch / name;
        write_file(path, bytes);
        const std::string message = message_of<UserError>([&] {
            const auto source = open_documents(path, config, 100);
            while (source->next()) {
            }
        });
        EXPECT_TRUE(message.starts_with(path)) << message;
        return message.substr(std::min(path.size(), message.size()));
    };
    TextConfig body;
    body.column = "body";
    EXPECT_EQ(refusal("a.jsonl", "{\"body\":\"x\"}\n{\"text\": \"x\", \"id\": 1}\n", body),
              ":2: there is no key \"body\" (text.column); the keys are: \"id\", \"text\"");
    EXPECT_EQ(refusal("a.jsonl", "{\"text\": 3}"), ":1: text = 3, expected a text");
    EXPECT_EQ(refusal("a.jsonl", "nonsense"),
              ":1:1: \"nonsense\" is no value of JSON; texts stand in double quotes, and true, "
              "false and null are in lower case");
    const std::string long_text(300000, 'a');
    EXPECT_EQ(refusal("a.txt.gz", gzip(long_text).substr(0, 200)),
              ": ends after 200 bytes, in the middle of its compressed data: cut, or not fetched "
              "whole");
    EXPECT_EQ(refusal("a.txt.zst", zstd(long_text).substr(0, 20)),
              ": ends after 20 bytes, in the middle of its compressed data: cut, or not fetched "
              "whole");
    EXPECT_TRUE(refusal("a.txt.gz", "plain").starts_with(": is not gzip data but plain text"));
    EXPECT_TRUE(refusal("a.txt.zst", "plain").starts_with(": is not zstd data but plain text"));
    std::string damaged = gzip(long_text);
    damaged[20] = static_cast<char>(damaged[20] ^ 0xFF);
    EXPECT_TRUE(refusal("a.txt.gz", damaged).starts_with(": damaged gzip data near byte "));
    EXPECT_EQ(refusal("a.txt", ""), ": is empty (0 bytes): it was not written or not fetched");
    EXPECT_EQ(
        refusal("a.txt.gz", gzip("x") + "junk"),
        ": its gzip data end at byte 21, and something else follows: cut it off (head -c 21)");
    EXPECT_EQ(refusal("a.txt", "two\nab\xE9 \n"),
              ":2: byte 6 (0xE9) is not UTF-8: set text.encoding to what it is (\"latin-1\", "
              "\"utf-16\", \"cp1252\" or another name of `iconv -l`), or convert the file");
    EXPECT_EQ(refusal("a.txt", "two\nab\xC3"),
              ":2: byte 6 (0xC3) begins a character that the file's end cuts");
    TextConfig wide;
    wide.encoding = "utf-16";
    EXPECT_EQ(refusal("a.txt",
                      std::string("\xFF\xFE"
                                  "a\0\0\xD8"
                                  "b\0",
                                  8),
                      wide),
              ":1: byte 4 (0x00) is no character in utf-16, which text.encoding says");
    EXPECT_EQ(refusal("a.txt",
                      std::string("\xFF\xFE"
                                  "a\0b",
                                  5),
                      wide),
              ":1: byte 4 (0x62) begins a character without an end in utf-16, which text.encoding "
              "says");
    EXPECT_EQ(refusal("a.bin", "abc"),
              ": 3 bytes are no whole number of uint16 ids "
              "(text.token_type)");
    EXPECT_EQ(refusal("a.bin", bytes_of(std::vector<std::uint16_t>{1, 100})),
              ": id 100 at place 1 is not in the model's vocabulary of 100");
    EXPECT_EQ(refusal("a.npy", "abc"), ": not a NumPy array: its header is cut");
    EXPECT_EQ(refusal("a.npy", npy("<f4", "(1,)", "abcd")),
              ": element type \"<f4\", expected whole numbers in little endian: save it as "
              "array.astype(\"<u4\")");
    EXPECT_EQ(refusal("a.npy", npy("<u2", "(2,)", "ab")),
              ": 130 bytes, expected 132 for shape (2,): cut, or not fetched whole");
    EXPECT_EQ(refusal("a.npy", npy("<u2", "(1,)", "abcd")),
              ": 132 bytes, expected 130 for shape (1,)");
    // 2^64 ids: as 64-bit integers multiply, none.
    EXPECT_EQ(refusal("a.npy", npy("<u2", "(4294967296, 4294967296)", "")),
              ": shape (4294967296, 4294967296) takes more bytes than any file has");
    EXPECT_EQ(refusal("a.npy", npy("<u4", "(4611686018427387904,)", "")),
              ": shape (4611686018427387904,) takes more bytes than any file has");
    EXPECT_EQ(refusal("a.npy", npy("<u2", "(1, 1, 1)", "ab")),
              ": shape (1, 1, 1), expected one or two dimensions");
    EXPECT_EQ(refusal("a.npy", npy("<u2", "(1, 1)", "ab", "True")),
              ": in column order, expected row order (numpy.ascontiguousarray)");
    EXPECT_TRUE(refusal("a.pdf", "").starts_with(": unknown kind of text file"));
    EXPECT_NE(message_of<UserError>([&] {
                  open_documents(scratch / "none.txt", {}, 100);
              }).find("none.txt: cannot be read"),
              std::string::npos);
}

TEST(Documents, LinesAreBounded) {
    const Scratch scratch;
    const std::string path = scratch / "a.jsonl";
    write_file(path, "{\"text\": \"a\"}\n\"" + std::string((std::size_t{1} << 28) + 10, 'x'));
    EXPECT_NE(message_of<UserError>([&] { texts(path); }).find("a.jsonl:2: the line has more than"),
              std::string::npos);
}

// Characters that the reader's blocks cut are put together again.
TEST(Documents, EncodingsGiveTheSameText) {
    const Scratch scratch;
    std::string utf8 = "x";
    std::string utf16("\xFF\xFEx\0", 4);
    std::string latin = "x";
    for (int i = 0; i < 300000; ++i) {
        utf8 += "\xC3\xA9";
        utf16 += std::string("\xE9\0", 2);
        latin += '\xE9';
    }
    TextConfig config;
    const auto check = [&](const std::string& bytes, const char* encoding) {
        config.encoding = encoding;
        write_file(scratch / "a.txt", bytes);
        EXPECT_EQ(texts(scratch / "a.txt", config), std::vector<std::string>{utf8}) << encoding;
    };
    check(utf8, "utf-8");
    check("\xEF\xBB\xBF" + utf8, "utf-8");
    check(utf16, "utf-16");
    check(utf16.substr(2), "utf-16-le");
    check(utf16.substr(2), "utf-16");
    check(latin, "latin-1");
    check(latin, "cp1252");
}

}  // namespace
}  // namespace clt
