// The command line: `clt COMMAND [POSITIONAL]... [--option [value]]...`. Options may stand anywhere
// after the command, as `--option value` or `--option=value`.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "clt/base/types.hpp"

namespace clt {

struct OptionSpec {
    std::string name;     // without "--"
    std::string value;    // what help calls its value; empty: a switch
    std::string meaning;  // for help
};

class Arguments {
  public:
    /// words: what follows the command. Throws UserError on an unknown option, a missing value, or
    /// too few or too many positional arguments; names: what help calls those.
    Arguments(const std::string& command, const std::vector<std::string>& words,
              const std::vector<OptionSpec>& options, const std::vector<std::string>& names);

    const std::string& positional(std::size_t i) const { return positional_[i]; }
    bool has(const std::string& option) const { return values_.contains(option); }
    /// The last value given.
    std::optional<std::string> value(const std::string& option) const;
    /// All values given, in order.
    std::vector<std::string> values(const std::string& option) const;
    /// Throws UserError unless it is an integer above 0.
    std::optional<Index> positive_integer(const std::string& option) const;
    /// Throws UserError unless it is a number above 0.
    std::optional<double> positive_number(const std::string& option) const;

  private:
    std::string command_;
    std::vector<std::string> positional_;
    std::map<std::string, std::vector<std::string>> values_;
};

}  // namespace clt
