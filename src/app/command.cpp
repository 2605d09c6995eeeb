#include "app/command.hpp"

#include <algorithm>

#include "app/did_you_mean.hpp"
#include "clt/base/error.hpp"

namespace clt {

const std::vector<Command>& all_commands() {
    static const std::vector<Command> commands = {generate_command(), train_command(),
                                                  evaluate_command(), plan_command(),
                                                  inspect_command(),  bench_command()};
    return commands;
}

const Command& find_command(const std::string& name) {
    const auto& commands = all_commands();
    const auto found = std::find_if(commands.begin(), commands.end(),
                                    [&](const Command& command) { return command.name == name; });
    if (found != commands.end()) return *found;
    std::vector<std::string> names = {"help"};
    for (const Command& command : commands) names.push_back(command.name);
    const std::string hint = did_you_mean(name, names);
    user_error("unknown command \"{}\"{}", name, hint.empty() ? "; see clt help" : hint);
}

OptionSpec set_option() {
    return {"set", "TABLE.KEY=VALUE",
            "Overrides a key of the job file; may be repeated. Texts need no quotes; a relative "
            "path starts at the working folder"};
}

}  // namespace clt
