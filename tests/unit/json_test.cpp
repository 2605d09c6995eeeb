#include "clt/io/json.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"
#include "clt/io/content.hpp"
#include "clt/io/file.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using namespace std::string_literals;

using test::message_of;

std::string refusal(const std::string& text) {
    return message_of<UserError>([&] { parse_json_object(text, "a.json"); });
}

TEST(JsonTest, TakesWhatPythonWrites) {
    const Json json = parse_json_object(
        "\xEF\xBB\xBF{\"a\": NaN, \"b\": [Infinity, -Infinity, 1e999, -1e999, 1e-999],\r\n\t"
        "\"c\": \"\\u00e9 \\ud83d\\ude00 \xC3\xA9\\n\", \"d\": {}, \"e\": [], \"f\": null, "
        "\"big\": 18446744073709551615, \"huge\": 123456789012345678901234567890}",
        "a.json");
    EXPECT_TRUE(std::isnan(json["a"].get<double>()));
    EXPECT_EQ(json["b"][0].get<double>(), HUGE_VAL);
    EXPECT_EQ(json["b"][1].get<double>(), -HUGE_VAL);
    EXPECT_EQ(json["b"][2].get<double>(), HUGE_VAL);
    EXPECT_EQ(json["b"][3].get<double>(), -HUGE_VAL);
    EXPECT_EQ(json["b"][4].get<double>(), 0);
    EXPECT_EQ(json["c"], "\xC3\xA9 \xF0\x9F\x98\x80 \xC3\xA9\n");
    EXPECT_EQ(json["big"].get<std::uint64_t>(), std::numeric_limits<std::uint64_t>::max());
    EXPECT_EQ(json["huge"].get<double>(), 123456789012345678901234567890.0);
    EXPECT_EQ(parse_json_object("{\"a\": 1, \"a\": 2}", "a.json")["a"], 2);
}

// Numbers must not lose a bit between us and the library that others read with.
TEST(JsonTest, ParsesAsTheLibraryDoes) {
    for (const char* text : {"0", "-0", "-12", "0.1", "1e5", "1E+5", "2.5e-3", "4.9e-324", "1.5",
                             "-9223372036854775808", "9223372036854775807", "true", "false", "null",
                             "\"\"", "\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "[1,[2,{\"a\":[]}]]"})
        EXPECT_EQ(parse_json(text, "a"), Json::parse(text)) << text;
}

TEST(JsonTest, SaysWhereAndWhat) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"", "a.json: is empty, expected JSON"},
        {" \n", "a.json:2:1: holds only white space, expected JSON"},
        {"[1, 2]", "a.json:1:1: [1, 2], expected an object: {...}"},
        {"\n \"x\"", "a.json:2:2: \"x\", expected an object: {...}"},
        {"{\"a\": 1,\n \"b\" 2}", "a.json:2:6: '2', expected ':' behind the key \"b\""},
        {"{\"\xC3\xA9\": 1 2}", "a.json:1:9: '2', expected ',' or '}' in an object"},
        {"{\"a\": [1,]}", "a.json:1:10: a comma before ']'"},
        {"{\"a\": 1,}", "a.json:1:9: a comma before '}'"},
        {"{\"a\": [1, 2", "a.json:1:12: ends in the middle of a list: cut"},
        {"{\"a\": \"b", "a.json:1:9: ends in the middle of a text: cut"},
        {"{\"a\": \"b\\", "a.json:1:10: ends in the middle of a text: cut"},
        {"{\"a\":", "a.json:1:6: ends in the middle of an object: cut"},
        {"{\"a\": 1", "a.json:1:8: ends in the middle of an object: cut"},
        {"{'a': 1}", "a.json:1:2: a key in single quotes, expected double quotes"},
        {"{\"a\": 'b'}", "a.json:1:7: a text in single quotes, expected double quotes"},
        {"{a: 1}", "a.json:1:2: 'a', expected a key in double quotes"},
        {"{\"a\": 01}", "a.json:1:7: a number that begins with 0"},
        {"{\"a\": -}", "a.json:1:7: a number without digits"},
        {"{\"a\": 1.}", "a.json:1:7: a number without digits behind the point"},
        {"{\"a\": .5}", "a.json:1:7: '.', expected a value"},
        {"{\"a\": 1e}", "a.json:1:7: a number without digits in its exponent"},
        {"{\"a\": 1} x", "a.json:1:10: 'x' behind the end of the object"},
        {"{\"a\": 1 // b\n}", "a.json:1:9: '/', expected ',' or '}' in an object"},
        {"{\"a\": // b\n1}", "a.json:1:7: a comment, expected none: JSON has no such"},
        {"{\"a\": \"b\nc\"}",
         "a.json:1:9: a line ends within a text, expected '\"' before it, or "
         "\\n"},
        {"{\"a\": \"b\x01\"}", "a.json:1:9: byte 0x01 within a text, expected \\u0001"},
        {"{\"long key here\": \"caf\xE9\"}", "a.json:1:23: byte 0xE9 is not UTF-8"},
        {"{\"a\": \"\\x\"}",
         "a.json:1:9: 'x' behind a backslash, expected one of \" \\ / b f n r t "
         "u"},
        {"{\"a\": \"\\u12g4\"}",
         "a.json:1:8: \"12g4\" behind \\u, expected four hexadecimal digits"},
    };
    for (const auto& [text, message] : cases) EXPECT_EQ(refusal(text), message) << text;
    EXPECT_NE(refusal("{\"a\": True}").find("a.json:1:7: \"True\" is no value of JSON"),
              std::string::npos);
    EXPECT_EQ(message_of<UserError>([] { parse_json_object("{,}", "b.jsonl", 17); }),
              "b.jsonl:17:2: ',', expected a key in double quotes");
}

TEST(JsonTest, SaysWhatTheFileIsInstead) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"},
        {"\x1F\x8B\x08"s, "gzip data"},
        {"\x28\xB5\x2F\xFD"s, "zstd data"},
        {"PK\x03\x04"s, "a zip archive"},
        {"<!DOCTYPE html><html>", "a web page"},
        {"\n<HTML>", "a web page"},
        {"PAR1\x15"s, "a Parquet table"},
        {"\x93NUMPY\x01"s, "a NumPy array"},
        {"\x89HDF\r\n\x1A\n"s, "an HDF5 file"},
        {"\xFF\xFE{\0}\0"s, "UTF-16 text (little endian)"},
        {"{\0\"\0a\0\"\0:\0 \0001\0}\0"s, "UTF-16 text (little endian, without a mark)"},
        {std::string(64, '\0'), "nothing but zero bytes"},
        {"\x10\x00\x00\x00\x00\x00\x00\x00{\"__meta"s, "a safetensors file"},
        {"Entry not found", "a server's answer \"Entry not found\""},
    };
    for (const auto& [text, kind] : cases)
        EXPECT_EQ(refusal(text).find("a.json: is " + kind), 0U) << refusal(text);
}

// Trees are destroyed and printed by recursion: 200 kB of brackets overflow the stack.
TEST(JsonTest, NestingIsBounded) {
    const auto nested = [](std::size_t depth) {
        return std::string(depth, '[') + std::string(depth, ']');
    };
    EXPECT_NO_THROW(parse_json(nested(json_depth + 1), "a.json"));
    EXPECT_EQ(message_of<UserError>([&] { parse_json(nested(json_depth + 2), "a.json"); }),
              "a.json:1:102: nested deeper than 100 levels");
    EXPECT_NE(refusal("{\"a\":" + std::string(std::size_t{20} << 20, '[')).find("nested deeper"),
              std::string::npos);
    std::string objects;
    for (int i = 0; i < 200'000; ++i) objects += "{\"a\":";
    EXPECT_NE(refusal(objects).find("nested deeper"), std::string::npos);
}

TEST(JsonTest, MemoryIsBounded) {
    std::string lists = "{\"a\":[[]";
    const std::size_t bytes = std::size_t{24} << 20;
    while (lists.size() < bytes) lists += ",[]";
    EXPECT_NE(refusal(lists + "]}").find("holds too much"), std::string::npos);
}

TEST(JsonTest, ValuesAreShownShort) {
    EXPECT_EQ(shown(parse_json("[0, 5]", "a")), "[0, 5]");
    EXPECT_EQ(shown(parse_json("[0, [5]]", "a")), "a list of 2 values");
    EXPECT_EQ(shown(parse_json("{\"a\": 1}", "a")), "an object of 1 keys");
    EXPECT_EQ(shown(parse_json("NaN", "a")), "NaN");
    EXPECT_EQ(shown(parse_json("-1e999", "a")), "-Infinity");
    EXPECT_EQ(shown(parse_json("\"\\ud800\\u0001\"", "a")),
              "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\\u0001\"");
    const std::string text =
        shown(Json(std::string(59, 'x') + "\xC3\xA9" + std::string(1000, 'y')));
    EXPECT_EQ(text, "\"" + std::string(59, 'x') + "...\"");
}

class JsonObjectTest : public ::testing::Test {
  protected:
    const JsonObject object = JsonObject::parse(
        R"({"n": 7, "big": 9223372036854775808, "x": 0.5, "nan": NaN, "inf": 1e400, "t": "word",
            "half": "ab\ud800", "yes": true, "none": null, "inner": {"deep": {"n": "7"}},
            "list": [1, 2], "mixed": [1, "2"], "bad": [0.5, NaN, 1e300], "tokens": [{"id": 3}, 4]})",
        "c.json");
    template <class Work>
    std::string refused(Work&& work) {
        return message_of<UserError>([&] { work(object); });
    }
};

TEST_F(JsonObjectTest, Reads) {
    EXPECT_EQ(object.integer("n"), 7);
    EXPECT_EQ(object.integer("n", 7, 7), 7);
    EXPECT_EQ(object.finite("n"), 7.0);
    EXPECT_EQ(object.finite("x"), 0.5);
    EXPECT_EQ(object.text("t"), "word");
    EXPECT_TRUE(object.flag("yes"));
    EXPECT_FALSE(object.has("none"));
    EXPECT_FALSE(object.has("other"));
    EXPECT_EQ(object.integer_or("none", 3), 3);
    EXPECT_EQ(object.text_or("other", "else"), "else");
    EXPECT_EQ(object.integers("list"), (std::vector<Index>{1, 2}));
    EXPECT_EQ(object.floats("list", 2, "d"), (std::vector<float>{1, 2}));
    // An inner object keeps the text alive.
    const JsonObject inner = JsonObject::parse(R"({"a": {"b": {"c": 5}}})", "x").object("a");
    EXPECT_EQ(inner.object("b").integer("c"), 5);
}

TEST_F(JsonObjectTest, RefusesInOneSentence) {
    using O = const JsonObject&;
    EXPECT_EQ(refused([](O o) { o.integer("other"); }),
              "c.json: other is missing, expected a whole number");
    EXPECT_EQ(refused([](O o) { o.integer("none"); }),
              "c.json: none is missing, expected a whole number");
    EXPECT_EQ(refused([](O o) { o.integer("t"); }),
              "c.json: t = \"word\", expected a whole number");
    EXPECT_EQ(refused([](O o) { o.integer("x"); }), "c.json: x = 0.5, expected a whole number");
    EXPECT_EQ(refused([](O o) { o.integer("big"); }),
              "c.json: big = 9223372036854775808, expected a whole number");
    EXPECT_EQ(refused([](O o) { o.integer("n", 8); }),
              "c.json: n = 7, expected a whole number from 8");
    EXPECT_EQ(refused([](O o) { o.integer("n", 0, 6); }),
              "c.json: n = 7, expected a whole number from 0 to 6");
    EXPECT_EQ(refused([](O o) { o.finite("nan"); }), "c.json: nan = NaN, expected a finite number");
    EXPECT_EQ(refused([](O o) { o.finite("inf"); }),
              "c.json: inf = Infinity, expected a finite number");
    EXPECT_EQ(refused([](O o) { o.text("n"); }), "c.json: n = 7, expected a text");
    EXPECT_NE(refused([](O o) { o.text("half"); }).find("c.json: half: half of a surrogate pair"),
              std::string::npos);
    EXPECT_EQ(refused([](O o) { o.flag("n"); }), "c.json: n = 7, expected true or false");
    EXPECT_EQ(refused([](O o) { o.object("inner").object("deep").integer("n"); }),
              "c.json: inner.deep.n = \"7\", expected a whole number");
    EXPECT_EQ(refused([](O o) { o.object("list"); }), "c.json: list = [1, 2], expected an object");
    EXPECT_EQ(refused([](O o) { o.list("inner"); }),
              "c.json: inner = an object of 1 keys, expected a list");
    EXPECT_EQ(refused([](O o) { o.integers("mixed"); }),
              "c.json: mixed[1] = \"2\", expected a whole number");
    EXPECT_EQ(refused([](O o) { o.floats("bad", 3, "d"); }),
              "c.json: bad[1] is NaN, expected a finite float32 number");
    EXPECT_EQ(refused([](O o) { o.floats("list", 3, "d_model"); }),
              "c.json: list has 2 numbers, expected 3 (d_model)");
    EXPECT_EQ(refused([](O o) { o.objects("tokens"); }),
              "c.json: tokens[1] = 4, expected an object");
}

TEST(JsonFileTest, IsBoundedBeforeItIsRead) {
    const test::Scratch scratch;
    write_file(scratch / "a.json", "{\"a\": 1}");
    EXPECT_EQ(JsonObject::read(scratch / "a.json").integer("a"), 1);
    EXPECT_NE(message_of<UserError>([&] {
                  read_file(scratch / "a.json", 7);
              }).find("a.json: has 8 bytes, expected at most 7"),
              std::string::npos);
}

}  // namespace
}  // namespace clt
