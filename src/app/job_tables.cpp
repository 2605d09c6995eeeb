#include "app/job_tables.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>

namespace clt {
namespace {

template <class... F>
struct Overloaded : F... {
    using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

std::string absolute_path(const std::string& path) {
    return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

/// TOML tells floats from integers by the point or the exponent.
std::string float_text(double value) {
    std::string text = fmt::format("{}", value);
    if (std::isfinite(value) && text.find_first_of(".e") == std::string::npos) text += ".0";
    return text;
}

/// A limit as one writes it: 1000000000, not 1e+09.
std::string limit_text(double value) {
    const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
    return whole ? fmt::format("{:.0f}", value) : fmt::format("{}", value);
}

std::string range_text(const FieldRule& rule) {
    const bool low = std::isfinite(rule.min);
    const bool high = std::isfinite(rule.max);
    if (low && high)
        return rule.min_excluded
                   ? fmt::format(" above {} and at most {}", limit_text(rule.min),
                                 limit_text(rule.max))
                   : fmt::format(" from {} to {}", limit_text(rule.min), limit_text(rule.max));
    if (low)
        return fmt::format(" {} {}", rule.min_excluded ? "above" : "of at least",
                           limit_text(rule.min));
    if (high) return fmt::format(" of at most {}", limit_text(rule.max));
    return "";
}

std::string choices_text(const FieldRule& rule) {
    std::vector<std::string> choices;
    for (const std::string& choice : rule.choices) choices.push_back(quoted(choice));
    return fmt::format("{}", fmt::join(choices, ", "));
}

std::string limits_of(const JobField& field) {
    const FieldRule& rule = field.rule;
    if (!rule.choices.empty()) return fmt::format("{}", fmt::join(rule.choices, ", "));
    const bool low = std::isfinite(rule.min);
    const bool high = std::isfinite(rule.max);
    if (low && high) return fmt::format("{} to {}", limit_text(rule.min), limit_text(rule.max));
    if (low)
        return fmt::format("{} {}", rule.min_excluded ? "above" : "at least", limit_text(rule.min));
    if (high) return fmt::format("at most {}", limit_text(rule.max));
    return "";
}

}  // namespace

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
            out += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
        } else {
            out += c;
        }
    }
    return out + '"';
}

std::string type_name(const JobField& field) {
    const bool path = field.rule.path;
    return std::visit(Overloaded{[&](const std::string*) { return path ? "path" : "text"; },
                                 [&](const double*) { return "number"; },
                                 [&](const bool*) { return "true/false"; },
                                 [&](const Index*) { return "integer"; },
                                 [&](const TextList*) { return path ? "paths" : "texts"; }},
                      field.target);
}

std::string described(const JobField& field) {
    const std::string limits = limits_of(field);
    return limits.empty() ? field.meaning : fmt::format("{} ({})", field.meaning, limits);
}

std::string expectation(const JobField& field) {
    const FieldRule& rule = field.rule;
    const std::string text = rule.path ? "a path in quotes" : "text in quotes";
    return std::visit(
        Overloaded{[&](const std::string*) {
                       return rule.choices.empty() ? text : "one of " + choices_text(rule);
                   },
                   [&](const double*) { return "a number" + range_text(rule); },
                   [&](const bool*) { return std::string("true or false"); },
                   [&](const Index*) { return "an integer" + range_text(rule); },
                   [&](const TextList*) {
                       if (!rule.choices.empty()) return "a list of " + choices_text(rule);
                       return fmt::format("a list of {} in quotes", rule.path ? "paths" : "texts");
                   }},
        field.target);
}

std::string value_text(const JobField& field, bool absolute) {
    const bool make_absolute = absolute && field.rule.path;
    auto text = [&](const std::string& value) {
        return quoted(make_absolute ? absolute_path(value) : value);
    };
    return std::visit(Overloaded{[&](const std::string* value) { return text(*value); },
                                 [&](const double* value) { return float_text(*value); },
                                 [&](const bool* value) { return fmt::format("{}", *value); },
                                 [&](const Index* value) { return fmt::format("{}", *value); },
                                 [&](const TextList* values) {
                                     TextList texts;
                                     for (const std::string& value : *values)
                                         texts.push_back(text(value));
                                     return fmt::format("[{}]", fmt::join(texts, ", "));
                                 }},
                      field.target);
}

}  // namespace clt
