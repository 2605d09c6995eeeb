#include "app/arguments.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "app/did_you_mean.hpp"
#include "clt/base/error.hpp"

namespace clt {
namespace {

template <class T>
std::optional<T> parse_number(const std::string& text) {
    T number{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return number;
}

}  // namespace

Arguments::Arguments(const std::string& command, const std::vector<std::string>& words,
                     const std::vector<OptionSpec>& options, const std::vector<std::string>& names)
    : command_(command) {
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        if (word.size() < 2 || word.front() != '-') {
            positional_.push_back(word);
            continue;
        }
        const std::size_t equals = word.find('=');
        const std::string flag = word.substr(0, equals);
        const auto spec = std::find_if(options.begin(), options.end(),
                                       [&](const OptionSpec& o) { return "--" + o.name == flag; });
        if (spec == options.end()) {
            std::vector<std::string> known;
            for (const OptionSpec& o : options) known.push_back("--" + o.name);
            user_error("unknown option {} of clt {}{}", flag, command, did_you_mean(flag, known));
        }
        auto& given = values_[spec->name];
        if (spec->value.empty()) {
            if (equals != std::string::npos) user_error("option {} takes no value", flag);
            given.emplace_back();
        } else if (equals != std::string::npos) {
            given.push_back(word.substr(equals + 1));
        } else if (++i < words.size()) {
            given.push_back(words[i]);
        } else {
            user_error("option {} needs a value: {} {}", flag, flag, spec->value);
        }
    }
    if (positional_.size() < names.size())
        user_error("clt {}: {} is missing; see clt help {}", command, names[positional_.size()],
                   command);
    if (positional_.size() > names.size())
        user_error("clt {}: unexpected argument \"{}\"; see clt help {}", command,
                   positional_[names.size()], command);
}

std::optional<std::string> Arguments::value(const std::string& option) const {
    const auto found = values_.find(option);
    return found == values_.end() ? std::nullopt : std::optional(found->second.back());
}

std::vector<std::string> Arguments::values(const std::string& option) const {
    const auto found = values_.find(option);
    return found == values_.end() ? std::vector<std::string>{} : found->second;
}

std::optional<Index> Arguments::positive_integer(const std::string& option) const {
    const auto text = value(option);
    if (!text) return std::nullopt;
    constexpr Index most = 1'000'000'000;  // of anything; products of two then fit in 64 bits
    const auto number = parse_number<Index>(*text);
    if (!number || *number <= 0 || *number > most)
        user_error("--{} {}: expected an integer from 1 to {}", option, *text, most);
    return number;
}

std::optional<double> Arguments::positive_number(const std::string& option) const {
    const auto text = value(option);
    if (!text) return std::nullopt;
    const auto number = parse_number<double>(*text);
    if (!number || !std::isfinite(*number) || *number <= 0)
        user_error("--{} {}: expected a number above 0", option, *text);
    return number;
}

}  // namespace clt
