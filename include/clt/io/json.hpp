// The one reader of JSON that is not ours: configurations, headers, statistics, lines of .jsonl. It
// takes what Python's json writes (NaN, Infinity and numbers beyond a double among it), says file,
// line, column and what is wrong in plain words, and is bounded: in nesting, bytes and memory.
// Grammar: RFC 8259; the deviations are Python's.
#pragma once

#include <limits>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "clt/base/types.hpp"

namespace clt {

using Json = nlohmann::json;

/// Deeper nesting is refused: destructors and printers of trees recurse.
inline constexpr int json_depth = 100;
/// Largest file that is read as JSON, and bound of the memory that a parsed text takes: lists of
/// empty lists take 20 times their text.
inline constexpr Index json_file_bytes = Index{1} << 28;
inline constexpr Index json_memory_bytes = Index{1} << 29;

/// Any value. name: the file, for messages, "NAME:LINE:COLUMN: what is wrong"; first_line: the
/// text's place in it. A byte order mark is skipped; of a key given twice the last counts; a number
/// beyond a double is an infinity and an escaped half of a surrogate pair stays one (look-ups
/// refuse both where they are read). Throws UserError.
Json parse_json(std::string_view text, const std::string& name, Index first_line = 1);
/// The same for a text that must be an object.
Json parse_json_object(std::string_view text, const std::string& name, Index first_line = 1);

/// A value for a message: in full when short, else its beginning ("...") or what it is ("a list of
/// 7 values"). Never throws and does not recurse, whatever the value.
std::string shown(const Json& value);

/// Typed look-up with one sentence for everything that can be wrong: "NAME: key = VALUE, expected
/// WHAT". A key that is null counts as missing. Copies share the parsed text.
class JsonObject {
  public:
    /// Throws UserError as parse_json_object.
    static JsonObject parse(std::string_view text, const std::string& name);
    /// A line of a .jsonl file; NAME is then "FILE:LINE".
    static JsonObject parse_line(std::string_view text, const std::string& file, Index line);
    /// The whole file. Throws UserError, also when it is larger than json_file_bytes.
    static JsonObject read(const std::string& path);

    const std::string& name() const { return name_; }
    const Json& json() const { return *object_; }
    bool has(std::string_view key) const { return find(key) != nullptr; }

    /// Each throws UserError when the key is missing, of another type or out of range.
    Index integer(std::string_view key, Index least = std::numeric_limits<Index>::min(),
                  Index most = std::numeric_limits<Index>::max()) const;
    double finite(std::string_view key) const;
    std::string text(std::string_view key) const;
    bool flag(std::string_view key) const;
    /// An object in this one; label: how messages call its keys, "LABELkey"; empty: "KEY.key".
    JsonObject object(std::string_view key, const std::string& label = {}) const;
    const Json& list(std::string_view key) const;
    /// A list of objects; messages call their keys "key[3].inner".
    std::vector<JsonObject> objects(std::string_view key) const;
    std::vector<Index> integers(std::string_view key,
                                Index least = std::numeric_limits<Index>::min()) const;
    /// Finite float32 numbers; count: how many, and what of.
    std::vector<float> floats(std::string_view key, Index count, const char* of) const;

    /// The value of a key that may be missing.
    Index integer_or(std::string_view key, Index otherwise,
                     Index least = std::numeric_limits<Index>::min()) const {
        return has(key) ? integer(key, least) : otherwise;
    }
    double finite_or(std::string_view key, double otherwise) const {
        return has(key) ? finite(key) : otherwise;
    }
    std::string text_or(std::string_view key, const std::string& otherwise) const {
        return has(key) ? text(key) : otherwise;
    }
    bool flag_or(std::string_view key, bool otherwise) const {
        return has(key) ? flag(key) : otherwise;
    }

    /// Throws UserError "NAME: key = VALUE, expected WHAT" or "NAME: key is missing, expected
    /// WHAT".
    [[noreturn]] void refuse(std::string_view key, const std::string& what) const;

  private:
    JsonObject() = default;
    const Json* find(std::string_view key) const;  // null: missing

    std::string name_;
    std::string label_;
    std::shared_ptr<const Json> object_;
};

/// A value that must be a whole number, a finite number, a text. where: "FILE: key". Throws
/// UserError.
Index json_integer(const Json& value, const std::string& where,
                   Index least = std::numeric_limits<Index>::min(),
                   Index most = std::numeric_limits<Index>::max());
double json_finite(const Json& value, const std::string& where);
std::string json_text(const Json& value, const std::string& where);

}  // namespace clt
