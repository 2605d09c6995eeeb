// What `clt help` prints, made from the commands and from the fields of the config structs.
#pragma once

#include <string>

#include "app/command.hpp"
#include "app/job_tables.hpp"

namespace clt {

/// `clt help`: the commands. At most 100 columns, as everything here.
std::string general_help();
/// `clt help COMMAND`: usage, options and every key of its job file.
std::string command_help(const Command& command);
/// The keys of a job as Markdown tables, for the README.
std::string job_reference_markdown(const Command& command);
/// Those of every job, as they stand in the README between
/// "<!-- job reference: begin -->" and "<!-- job reference: end -->".
std::string full_reference_markdown();

/// The keys alone, aligned. marks: what they are for a job that goes on (* or + behind the name).
std::string keys_help(const JobTables& tables, bool marks);

}  // namespace clt
