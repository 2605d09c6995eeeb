// Job files: TOML with one table a config struct. Everything that is wrong with a job is reported
// at once, each with file and line. Relative paths in the file start at the file's folder, those
// given by --set at the working folder, as any other path of a command line does.
#pragma once

#include <string>
#include <vector>

#include "app/job_tables.hpp"
#include "clt/comm/communicator.hpp"

namespace clt {

/// What a job is read from, the same on every rank.
struct JobSource {
    std::string path;                    // of the file: for messages and relative paths
    std::string text;                    // its content
    std::vector<std::string> overrides;  // "table.key=value", later ones win
};

/// Rank 0 reads the file, every rank gets its text. Collective over world. Throws UserError when it
/// cannot be read.
JobSource load_job_source(const std::string& path, const std::vector<std::string>& overrides,
                          const Communicator& world);

/// Gathers what is wrong with a job.
class JobProblems {
  public:
    /// line: in the job file; 0: none, e.g. for --set.
    void add(const std::string& where, Index line, const std::string& what);
    bool empty() const { return problems_.empty(); }
    /// Throws UserError with one line a problem, in the order of the file, unless there is none.
    void raise() const;

  private:
    struct Problem {
        Index line;
        std::string text;
    };
    std::vector<Problem> problems_;
};

/// Fills the job behind `tables`. kind: what [job] kind must be. Not collective. Throws UserError
/// with a line for everything that is wrong: unknown table or key, wrong type, out of range, not
/// among the choices, missing, or no TOML at all.
void read_tables(const JobSource& source, const std::string& kind, const JobTables& tables);

/// The job in `source`. Combinations of values are checked by the job itself: it may have
/// `template <class Report> void conflicts(Report& report) const`, which calls report("table.key",
/// "what is wrong"). Throws UserError as read_tables. Not collective.
template <class Job>
Job read_job(const JobSource& source, const std::string& kind) {
    Job job;
    read_tables(source, kind, tables_of(job));
    JobProblems problems;
    auto report = [&](const std::string& key, const std::string& what) {
        problems.add(source.path, 0, key + ": " + what);
    };
    if constexpr (requires { job.conflicts(report); }) job.conflicts(report);
    problems.raise();
    return job;
}

/// Stores a command line's value in a key, typed and checked as --set does. Throws UserError that
/// calls it `name`.
void set_field(const JobField& field, const std::string& name, const std::string& value);

/// Every key with its value as a TOML file that runs the same job from any folder.
std::string resolved_text(const JobTables& tables);

/// Makes the output folder, when missing, and writes the resolved text into it as
/// job.resolved.toml. Collective over world. Throws UserError when it cannot be written.
void write_resolved_job(const std::string& output, const JobTables& tables,
                        const Communicator& world);

/// Keys that differ between two resolved texts, save those that do not change the result
/// (rule::execution). A key that a text does not have counts with its default; defaults: the tables
/// of a fresh job of the same kind. Throws UserError when a text is not TOML.
std::vector<FieldChange> difference(const std::string& before, const std::string& now,
                                    const JobTables& defaults);

}  // namespace clt
