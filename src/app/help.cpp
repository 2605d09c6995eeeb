#include "app/help.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <sstream>
#include <vector>

#include "clt/analyse/config.hpp"
#include "clt/base/error.hpp"
#include "clt/base/version.hpp"
#include "clt/lm/config.hpp"
#include "clt/train/config.hpp"

namespace clt {
namespace {

constexpr std::size_t width = 100;

/// Words of `text` in lines of at most `columns`; a longer word has a line for itself.
std::vector<std::string> wrapped(const std::string& text, std::size_t columns) {
    std::vector<std::string> lines(1);
    std::istringstream words(text);
    for (std::string word; words >> word;) {
        std::string& line = lines.back();
        if (!line.empty() && line.size() + 1 + word.size() > columns)
            lines.push_back(word);
        else
            line.append(line.empty() ? "" : " ").append(word);
    }
    return lines;
}

/// `left`, then `text` wrapped from column `column` on.
std::string hanging(const std::string& left, std::size_t column, const std::string& text) {
    std::string out;
    std::string start = fmt::format("{:<{}}", left, column);
    for (const std::string& line : wrapped(text, width - column)) {
        out.append(start).append(line).append("\n");
        start = std::string(column, ' ');
    }
    return out;
}

/// A job that starts where an earlier one ended has keys that must be as they were.
bool goes_on(const std::string& job_kind) {
    return job_kind != "evaluate";
}

std::string mark_of(const JobField& field) {
    switch (field.rule.role) {
        case Role::execution:
            return "*";
        case Role::free:
            return "+";
        default:
            return "";
    }
}

std::string role_cell(const JobField& field) {
    switch (field.rule.role) {
        case Role::execution:
            return "any";
        case Role::free:
            return "free";
        default:
            return "fixed";
    }
}

std::string default_of(const JobField& field) {
    return field.rule.required ? "required" : value_text(field, false);
}

/// Calls `use` with the tables of a fresh job of this kind.
std::string with_tables(const std::string& kind,
                        const std::function<std::string(const JobTables&)>& use) {
    const auto apply = [&](auto job) { return use(tables_of(job)); };
    if (kind == "generate") return apply(GenerateJob{});
    if (kind == "train") return apply(TrainJob{});
    CLT_CHECK(kind == "evaluate", "no job of kind {}", kind);
    return apply(EvaluateJob{});
}

std::string usage_of(const Command& command) {
    std::string usage = fmt::format("clt {}", command.name);
    for (const std::string& name : command.positional) usage.append(" ").append(name);
    for (const OptionSpec& option : command.options)
        usage +=
            fmt::format(" [--{}{}]{}", option.name, option.value.empty() ? "" : " " + option.value,
                        option.name == "set" ? "..." : "");
    return usage;
}

/// A cell must not hold a bare "|", nor what looks like HTML.
std::string markdown_cell(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '|' || c == '<') out += '\\';
        out += c;
    }
    return out;
}

}  // namespace

std::string general_help() {
    std::string text = fmt::format(
        "clt {}: trains cross-layer transcoders on the activations of a language model.\n\n",
        version());
    for (const Command& command : all_commands())
        text += hanging(fmt::format("  clt {}", command.name), 16, command.summary);
    text += hanging("  clt help", 16, "This page; clt help COMMAND: its options and job keys");
    text += hanging("  clt --version", 16, "Version and revision");
    text +=
        "\nRun it on several ranks with mpirun or srun: mpirun -n 2 clt train job.toml\n"
        "Exit codes: 0 done, 2 wrong input, 3 a library call failed, 4 a bug in clt,\n"
        "85 stopped by a signal after a checkpoint (run it again with --resume).\n";
    return text;
}

std::string keys_help(const JobTables& tables, bool marks) {
    std::size_t name_width = 0, type_width = 0, default_width = 0;
    for (const JobTable& table : tables) {
        for (const JobField& field : table.fields) {
            name_width = std::max(name_width, field.name.size() + 1);
            type_width = std::max(type_width, type_name(field).size());
            default_width = std::max(default_width, default_of(field).size());
        }
    }
    std::string text;
    for (const JobTable& table : tables) {
        text += fmt::format("\n[{}]  {}\n", table.name, table.meaning);
        for (const JobField& field : table.fields) {
            const std::string left = fmt::format(
                "  {:<{}}  {:<{}}  {:<{}}  ", field.name + (marks ? mark_of(field) : ""),
                name_width, type_name(field), type_width, default_of(field), default_width);
            text += hanging(left, left.size(), described(field));
        }
    }
    return text;
}

std::string command_help(const Command& command) {
    std::string text = hanging("usage: ", 7, usage_of(command)) + "\n";
    text += hanging("", 0, command.summary + ".");
    if (!command.options.empty()) text += "\n";
    std::size_t column = 0;
    std::vector<std::string> names;
    for (const OptionSpec& option : command.options) {
        names.push_back(fmt::format("  --{} {}", option.name, option.value));
        column = std::max(column, names.back().size() + 2);
    }
    for (std::size_t i = 0; i < names.size(); ++i)
        text += hanging(names[i], column, command.options[i].meaning);
    if (!command.job_kind.empty()) {
        const bool marks = goes_on(command.job_kind);
        text += "\nKeys of the job file. Relative paths in it start at its folder.";
        if (marks)
            text +=
                " Where a job goes on\nthat was stopped, keys must be as they were, save those "
                "with "
                "* (they do not change the result)\nand with + (what comes follows the new value).";
        text += "\n";
        text += with_tables(command.job_kind,
                            [&](const JobTables& tables) { return keys_help(tables, marks); });
    }
    return text;
}

std::string job_reference_markdown(const Command& command) {
    return with_tables(command.job_kind, [&](const JobTables& tables) {
        const bool roles = goes_on(command.job_kind);
        std::string text = fmt::format("### `clt {}`\n", command.name);
        for (const JobTable& table : tables) {
            text += fmt::format("\n**`[{}]`** {}\n\n| key | type | default |{} meaning |\n",
                                table.name, table.meaning, roles ? " on resume |" : "");
            text.append("| --- | --- | --- |").append(roles ? " --- |" : "").append(" --- |\n");
            for (const JobField& field : table.fields)
                text += fmt::format(
                    "| `{}` | {} | {} |{} {} |\n", field.name, type_name(field),
                    field.rule.required ? "required" : fmt::format("`{}`", default_of(field)),
                    roles ? fmt::format(" {} |", role_cell(field)) : "",
                    markdown_cell(described(field)));
        }
        return text;
    });
}

std::string full_reference_markdown() {
    std::string text;
    for (const Command& command : all_commands())
        if (command.name == command.job_kind)
            text.append(text.empty() ? "" : "\n").append(job_reference_markdown(command));
    return text;
}

}  // namespace clt
