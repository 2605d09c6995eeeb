// A subcommand: what help says of it and what runs it. Each stands in a file of commands/.
#pragma once

#include <string>
#include <vector>

#include "app/arguments.hpp"
#include "clt/base/worker.hpp"
#include "clt/comm/communicator.hpp"

namespace clt {

struct Command {
    std::string name;
    std::string summary;                  // one line
    std::vector<std::string> positional;  // their names in help
    std::vector<OptionSpec> options;
    std::string job_kind;  // of the job file it reads; empty: none
    /// Returns the exit code. Collective over world.
    int (*run)(const Arguments& arguments, const Communicator& world, Workers& workers);
};

Command generate_command();
Command train_command();
Command evaluate_command();
Command plan_command();
Command inspect_command();
Command bench_command();

/// All of them, in the order of help.
const std::vector<Command>& all_commands();
/// Throws UserError with a suggestion when there is none of this name.
const Command& find_command(const std::string& name);

/// --set, which every command with a job file takes.
OptionSpec set_option();

}  // namespace clt
