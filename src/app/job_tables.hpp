// A job as a list of tables and keys: what the config structs' tables() and fields() yield.
// Reading, the resolved copy, help, the README's tables and the diff on resume are ordinary code
// over it.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "clt/base/fields.hpp"
#include "clt/base/types.hpp"

namespace clt {

using TextList = std::vector<std::string>;
/// Where a key's value lives, in the job that the tables were made of.
using FieldTarget = std::variant<std::string*, double*, bool*, Index*, TextList*>;

struct JobField {
    std::string name;
    FieldTarget target;
    FieldRule rule;
    std::string meaning;
};

struct JobTable {
    std::string name;
    std::string meaning;
    std::vector<JobField> fields;
};

using JobTables = std::vector<JobTable>;

/// The keys of a config struct, which must outlive them and must not move.
template <class Config>
std::vector<JobField> fields_of(Config& config) {
    std::vector<JobField> fields;
    auto visit = [&](const char* name, auto& value, const FieldRule& rule, const char* meaning) {
        fields.push_back({name, FieldTarget(&value), rule, meaning});
    };
    config.fields(visit);
    return fields;
}

/// The tables of a job; the job must outlive them and must not move. Its tables() may name keys of
/// a table that do nothing in this kind of job: they are then unknown keys.
template <class Job>
JobTables tables_of(Job& job) {
    JobTables tables;
    auto visit = [&](const char* name, auto& config, const char* meaning,
                     std::initializer_list<std::string_view> unused = {}) {
        JobTable table{name, meaning, fields_of(config)};
        std::erase_if(table.fields, [&](const JobField& field) {
            return std::find(unused.begin(), unused.end(), field.name) != unused.end();
        });
        tables.push_back(std::move(table));
    };
    job.tables(visit);
    return tables;
}

/// The key's type as help shows it: "integer", "number", "text", "path", "true/false", "texts" or
/// "paths".
std::string type_name(const JobField& field);

/// The key's meaning with its limits in brackets, for help.
std::string described(const JobField& field);

/// What a value must be, for messages: "an integer above 0", "one of \"a\", \"b\"".
std::string expectation(const JobField& field);

/// The current value as TOML. Absolute: paths that are relative to the working folder become
/// absolute, so that the text means the same from any folder.
std::string value_text(const JobField& field, bool absolute);

/// `text` as a TOML string with its quotes.
std::string quoted(const std::string& text);

}  // namespace clt
