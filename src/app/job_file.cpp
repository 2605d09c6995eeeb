#include "app/job_file.hpp"

#include <toml++/toml.h>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include "app/did_you_mean.hpp"
#include "clt/base/error.hpp"
#include "clt/base/utf8.hpp"
#include "clt/base/version.hpp"
#include "clt/io/content.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

// A job has less than two hundred keys of one point each. What is far beyond is no job, and would
// exhaust memory or stack.
constexpr Index most_job_bytes = Index{1} << 20;
constexpr Index most_points = 1000;

constexpr Index after_the_file = Index{1} << 40;  // --set and missing keys are reported last

/// A value that somebody gave: where, for messages; and the folder its paths start at.
struct Given {
    const toml::node* node = nullptr;
    std::string where;
    Index line = 0;
    std::filesystem::path folder;
};

using Key = std::pair<std::string, std::string>;  // table, key

/// Points outside of texts and comments. Each may nest a table (a.b.c = 1), and toml++ frees tables
/// by recursion: a key of 100 kB of points would end the stack.
Index points_in(std::string_view text) {
    Index points = 0;
    std::string_view open;  // the quotes of the text we are in
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (open.empty()) {
            if (c == '#') {
                i = std::min(text.find('\n', i), text.size());
            } else if (c == '"' || c == '\'') {
                const bool tripled = text.substr(i, 3) == std::string(3, c);
                open = text.substr(i, tripled ? 3 : 1);
                i += open.size() - 1;
            } else if (c == '.') {
                ++points;
            }
        } else if (c == '\\' && open.front() == '"') {
            ++i;
        } else if (text.substr(i).starts_with(open)) {
            i += open.size() - 1;
            // A text in three quotes may end with two of its own.
            for (int own = 0; own < 2 && open.size() == 3; ++own)
                if (i + 1 < text.size() && text[i + 1] == c) ++i;
            open = {};
        } else if (c == '\n' && open.size() == 1) {
            open = {};  // no TOML, as the parser is going to say
        }
    }
    return points;
}

Index line_of(std::string_view text, std::size_t at) {
    return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
}

/// What the parser would say of in words about characters, or not survive.
void check_text(std::string_view text, const std::string& name) {
    if (const auto content = content_of(text.substr(0, content_bytes)))
        user_error("{}: is {}, expected a TOML file in UTF-8", name, sentence_of(*content, name));
    if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos)
        user_error("{}:{}: has a byte 0, expected a TOML file", name, line_of(text, zero));
    if (const std::size_t valid = valid_utf8_prefix(text); valid != text.size())
        user_error("{}:{}: byte 0x{:02X} is not UTF-8; save the file as UTF-8", name,
                   line_of(text, valid),
                   static_cast<unsigned>(static_cast<unsigned char>(text[valid])));
    if (points_in(text) > most_points)
        user_error("{}: more than {} points outside of texts; expected table.key = value", name,
                   most_points);
}

/// The line before `error` where the key or table was given that it calls a redefinition.
std::optional<Index> first_given(const std::string& text, const toml::parse_error& error) {
    const std::string words(error.description());
    if (words.find("redefine") == std::string::npos) return std::nullopt;
    const std::size_t open = words.find('\'');
    const std::string key = words.substr(open + 1, words.rfind('\'') - open - 1);
    std::size_t end = 0;
    for (Index line = 1; line < static_cast<Index>(error.source().begin.line); ++line)
        end = text.find('\n', end) + 1;
    toml::table before;
    try {
        before = toml::parse(std::string_view(text).substr(0, end));
    } catch (const toml::parse_error&) {  // the line lies within a list
        return std::nullopt;
    }
    Index latest_table = 0;
    std::optional<Index> found;
    for (auto&& [name, node] : before) {
        const auto table_line = static_cast<Index>(node.source().begin.line);
        if (name.str() == key) return table_line;
        if (!node.is_table() || table_line < latest_table) continue;
        latest_table = table_line;  // the table that `key` stands in is the last one
        found.reset();
        for (auto&& [inner, value] : *node.as_table())
            if (inner.str() == key) found = static_cast<Index>(inner.source().begin.line);
    }
    return found;
}

toml::table parse(const std::string& text, const std::string& name) {
    check_text(text, name);
    try {
        return toml::parse(text, name);
    } catch (const toml::parse_error& e) {
        const std::optional<Index> first = first_given(text, e);
        user_error("{}:{}:{}: not valid TOML: {}{}", name, e.source().begin.line,
                   e.source().begin.column, std::string(e.description()),
                   first ? fmt::format("; first given in line {}", *first) : "");
    }
}

std::string text_of(const toml::node& node) {
    std::ostringstream out;
    node.visit([&](const auto& n) { out << n; });
    std::string text = out.str();
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

std::string shown(const toml::node& node) {
    constexpr std::size_t longest = 60;
    const std::string text = text_of(node);
    return text.size() > longest ? text.substr(0, longest) + "..." : text;
}

std::string resolve(const std::filesystem::path& folder, const std::string& path) {
    if (path.empty()) return path;
    std::string result = (folder / path).lexically_normal().string();
    while (result.size() > 1 && result.back() == '/') result.pop_back();
    return result;
}

const JobTable* find_table(const JobTables& tables, const std::string& name) {
    const auto at = std::find_if(tables.begin(), tables.end(),
                                 [&](const JobTable& table) { return table.name == name; });
    return at == tables.end() ? nullptr : &*at;
}

const JobField* find_field(const JobTable& table, const std::string& name) {
    const auto at = std::find_if(table.fields.begin(), table.fields.end(),
                                 [&](const JobField& field) { return field.name == name; });
    return at == table.fields.end() ? nullptr : &*at;
}

std::vector<std::string> table_names(const JobTables& tables) {
    std::vector<std::string> names;
    for (const JobTable& table : tables) names.push_back(table.name);
    return names;
}

/// The closest key of the same table, or a key of that very name in another one.
std::string key_hint(const JobTables& tables, const std::string& table, const std::string& key) {
    if (const JobTable* own = find_table(tables, table)) {
        std::vector<std::string> names;
        for (const JobField& field : own->fields) names.push_back(field.name);
        std::string hint = did_you_mean(key, names);
        if (!hint.empty()) return hint;
    }
    for (const JobTable& other : tables)
        if (find_field(other, key) != nullptr)
            return fmt::format("; did you mean {} in [{}]?", key, other.name);
    return "";
}

/// Stores a value of the right type that satisfies the rule; false when it is not one.
class Store {
  public:
    Store(const Given& given, const FieldRule& rule) : given_(given), rule_(rule) {}

    bool operator()(std::string* target) const {
        const auto value = given_.node->value_exact<std::string>();
        if (!value || !allowed(*value)) return false;
        *target = converted(*value);
        return true;
    }
    bool operator()(double* target) const {
        if (!given_.node->is_number()) return false;
        const auto value = given_.node->value<double>();  // integers too: lr = 1
        if (!value || !std::isfinite(*value) || !in_range(*value)) return false;
        *target = *value + 0.0;  // -0 is 0
        return true;
    }
    bool operator()(bool* target) const {
        const auto value = given_.node->value_exact<bool>();
        if (value) *target = *value;
        return value.has_value();
    }
    bool operator()(Index* target) const {
        const auto value = given_.node->value_exact<std::int64_t>();
        if (!value || !in_range(static_cast<double>(*value))) return false;
        *target = *value;
        return true;
    }
    bool operator()(TextList* target) const {
        const toml::array* array = given_.node->as_array();
        if (array == nullptr || (rule_.required && array->empty())) return false;
        TextList values;
        for (const toml::node& element : *array) {
            const auto value = element.value_exact<std::string>();
            if (!value || !allowed(*value)) return false;
            values.push_back(converted(*value));
        }
        *target = std::move(values);
        return true;
    }

  private:
    bool in_range(double value) const {
        return (rule_.min_excluded ? value > rule_.min : value >= rule_.min) && value <= rule_.max;
    }
    bool allowed(const std::string& value) const {
        if (rule_.required && value.empty()) return false;
        return rule_.choices.empty() ||
               std::find(rule_.choices.begin(), rule_.choices.end(), value) != rule_.choices.end();
    }
    std::string converted(const std::string& value) const {
        return rule_.path ? resolve(given_.folder, value) : value;
    }

    const Given& given_;
    const FieldRule& rule_;
};

std::string trimmed(const std::string& text) {
    const std::size_t first = text.find_first_not_of(" \t");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

/// What to write instead, where that is plain.
std::string better(const JobField& field, const toml::node& node) {
    const auto value = node.value_exact<double>();
    const bool whole = value && *value == std::floor(*value) && std::abs(*value) < 1e15;
    if (!whole || !std::holds_alternative<Index*>(field.target)) return "";
    return fmt::format("; write {:.0f}", *value);
}

/// A value of the command line under the key "value". Typed like TOML; a shell eats quotes, so
/// texts may come without them.
toml::table parse_value(const JobField* field, const std::string& value) {
    const bool is_text = field != nullptr && std::holds_alternative<std::string*>(field->target);
    const bool is_quoted = !value.empty() && (value.front() == '"' || value.front() == '\'');
    if (!is_text || is_quoted) {
        try {
            toml::table parsed = parse("value = " + value, "");
            if (parsed.size() == 1) return parsed;
        } catch (const UserError&) {  // stays text, which no other type accepts
        }
    }
    return toml::table{{"value", value}};
}

class Reader {
  public:
    Reader(const JobSource& source, const JobTables& tables) : source_(source), tables_(tables) {}

    void read(const std::string& kind) {
        file_ = parse(source_.text, source_.path);
        gather_file();
        for (const std::string& text : source_.overrides) gather_override(text);
        check_kind(kind);
        for (const JobTable& table : tables_)
            for (const JobField& field : table.fields) fill(table, field);
        problems_.raise();
    }

  private:
    std::string at(Index line) const { return fmt::format("{}:{}", source_.path, line); }

    void gather_file() {
        const auto folder = std::filesystem::path(source_.path).parent_path();
        for (auto&& [name, node] : file_) {
            const std::string table(name.str());
            const Index line = name.source().begin.line;
            if (node.is_value() || (node.is_array() && !node.is_array_of_tables())) {
                problems_.add(at(line), line,
                              fmt::format("{} stands outside of any table{}", table,
                                          key_hint(tables_, "", table)));
                continue;
            }
            if (find_table(tables_, table) == nullptr) {
                problems_.add(at(line), line,
                              fmt::format("unknown table [{}]{}", table,
                                          did_you_mean(table, table_names(tables_))));
                continue;
            }
            if (!node.is_table()) {
                problems_.add(at(line), line,
                              fmt::format("[[{0}]] is a list; expected one table [{0}]", table));
                continue;
            }
            for (auto&& [key, value] : *node.as_table()) {
                const Index key_line = key.source().begin.line;
                add(table, std::string(key.str()), {&value, at(key_line), key_line, folder});
            }
        }
    }

    void gather_override(const std::string& text) {
        const std::size_t equals = text.find('=');
        const std::size_t dot = text.find('.');
        if (equals == std::string::npos || dot == std::string::npos || dot > equals)
            return problems_.add("--set", after_the_file + 1,
                                 fmt::format("{}: expected table.key=value", quoted(text)));
        const std::string table = trimmed(text.substr(0, dot));
        const std::string key = trimmed(text.substr(dot + 1, equals - dot - 1));
        const std::string value = trimmed(text.substr(equals + 1));
        const JobTable* known = find_table(tables_, table);
        if (known == nullptr)
            return problems_.add("--set", after_the_file + 1,
                                 fmt::format("unknown table [{}]{}", table,
                                             did_you_mean(table, table_names(tables_))));
        const JobField* field = find_field(*known, key);
        overrides_.push_back(std::make_unique<toml::table>(parse_value(field, value)));
        add(table, key, {overrides_.back()->get("value"), "--set", after_the_file + 1, {}});
    }

    void add(const std::string& table, const std::string& key, Given given) {
        if (find_field(*find_table(tables_, table), key) == nullptr)
            return problems_.add(
                given.where, given.line,
                fmt::format("unknown key {}.{}{}", table, key, key_hint(tables_, table, key)));
        given_[{table, key}] = std::move(given);
    }

    /// A job of another kind has other tables: say that alone, not that they are unknown.
    void check_kind(const std::string& kind) const {
        const auto found = given_.find({"job", "kind"});
        if (found == given_.end()) return;
        const auto value = found->second.node->value_exact<std::string>();
        if (!value || *value == kind) return;
        const JobField* field = find_field(*find_table(tables_, "job"), "kind");
        const auto& kinds = field->rule.choices;
        if (std::find(kinds.begin(), kinds.end(), *value) == kinds.end()) return;
        user_error("{}: job.kind = \"{}\", but this command runs jobs of kind \"{}\"",
                   found->second.where, *value, kind);
    }

    void fill(const JobTable& table, const JobField& field) {
        const auto found = given_.find({table.name, field.name});
        if (found == given_.end()) {
            if (field.rule.required)
                problems_.add(source_.path, after_the_file,
                              fmt::format("{}.{} is missing; expected {} ({})", table.name,
                                          field.name, expectation(field), field.meaning));
            return;
        }
        const Given& given = found->second;
        if (!std::visit(Store(given, field.rule), field.target))
            problems_.add(
                given.where, given.line,
                fmt::format("{}.{} = {}: expected {}{}", table.name, field.name, shown(*given.node),
                            expectation(field), better(field, *given.node)));
        // A relative path may lie in a folder with such a name.
        const std::string text = value_text(field, true);
        if (valid_utf8_prefix(text) != text.size())
            problems_.add(given.where, given.line,
                          fmt::format("{}.{} = {}: is not UTF-8, in which jobs and results are "
                                      "written; expected another name",
                                      table.name, field.name, repair_utf8(text)));
    }

    const JobSource& source_;
    const JobTables& tables_;
    toml::table file_;
    std::vector<std::unique_ptr<toml::table>> overrides_;
    std::map<Key, Given> given_;
    JobProblems problems_;
};

}  // namespace

JobSource load_job_source(const std::string& path, const std::vector<std::string>& overrides,
                          const Communicator& world) {
    JobSource source{path, "", overrides};
    world.together([&] {
        if (world.rank() == 0) source.text = read_file(path, most_job_bytes);
    });
    source.text = world.broadcast(source.text);
    return source;
}

void JobProblems::add(const std::string& where, Index line, const std::string& what) {
    problems_.push_back({line, where + ": " + what});
}

void JobProblems::raise() const {
    if (problems_.empty()) return;
    std::vector<Problem> ordered = problems_;
    std::stable_sort(ordered.begin(), ordered.end(),
                     [](const Problem& a, const Problem& b) { return a.line < b.line; });
    std::string text;
    for (const Problem& problem : ordered)
        text.append(text.empty() ? "" : "\n").append(problem.text);
    throw UserError(text);
}

void read_tables(const JobSource& source, const std::string& kind, const JobTables& tables) {
    Reader(source, tables).read(kind);
}

void set_field(const JobField& field, const std::string& name, const std::string& value) {
    const toml::table holder = parse_value(&field, value);
    const Given given{holder.get("value"), name, 0, {}};
    if (!std::visit(Store(given, field.rule), field.target))
        user_error("{} {}: expected {}", name, value, expectation(field));
}

std::string resolved_text(const JobTables& tables) {
    std::string text =
        fmt::format("# Every key of the job as clt {} ({}) ran it.\n", version(), revision());
    for (const JobTable& table : tables) {
        text += fmt::format("\n[{}]\n", table.name);
        for (const JobField& field : table.fields)
            text += fmt::format("{} = {}\n", field.name, value_text(field, true));
    }
    return text;
}

void write_resolved_job(const std::string& output, const JobTables& tables,
                        const Communicator& world) {
    world.together([&] {
        if (world.rank() != 0) return;
        make_writable_folder(output);
        write_file(output + "/job.resolved.toml", resolved_text(tables));
    });
}

std::vector<FieldChange> difference(const std::string& before, const std::string& now,
                                    const JobTables& defaults) {
    const toml::table files[] = {parse(before, "the stored job"), parse(now, "the job"),
                                 parse(resolved_text(defaults), "the defaults")};
    std::vector<FieldChange> changes;
    for (const JobTable& table : defaults) {
        for (const JobField& field : table.fields) {
            if (field.rule.role == Role::execution) continue;
            const auto value_in = [&](const toml::table& file) {
                const toml::node* node = file[table.name][field.name].node();
                return text_of(node != nullptr ? *node : *files[2][table.name][field.name].node());
            };
            const std::string was = value_in(files[0]);
            const std::string is = value_in(files[1]);
            if (was != is)
                changes.push_back({table.name + "." + field.name, field.rule.role, was, is});
        }
    }
    return changes;
}

}  // namespace clt
