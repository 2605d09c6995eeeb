// One process of a job: MPI, threads, the command, and errors. What all ranks report together ends
// the job in order, with one message; what a single rank reports ends it by MPI_Abort.
#include <fmt/format.h>
#include <omp.h>

#include <string>
#include <vector>

#include "app/command.hpp"
#include "app/help.hpp"
#include "app/threads.hpp"
#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/base/stop.hpp"
#include "clt/base/version.hpp"
#include "clt/comm/communicator.hpp"
#include "clt/comm/heartbeat.hpp"

namespace {

using namespace clt;

// Ranks that agreed to fail arrive within milliseconds of each other; this allows for a loaded
// host.
constexpr double arrival_timeout_s = 10;

struct Failure {
    int exit_code;
    std::string message;
};

Failure current_failure() {
    try {
        throw;
    } catch (const UserError& e) {
        return {2, e.what()};
    } catch (const LibraryError& e) {
        return {3, e.what()};
    } catch (const Stopped& e) {
        return {exit_interrupted, e.what()};
    } catch (const std::exception& e) {
        return {4, fmt::format("{} (this is a bug in clt {})", e.what(), revision())};
    }
}

/// Every line of the message with the program's name, all at once: ranks share stderr.
void report(const std::string& message, const std::string& prefix) {
    std::string text = prefix;
    for (const char c : message) {
        text += c;
        if (c == '\n') text += prefix;
    }
    text += '\n';
    log_text(text);
}

/// What needs neither MPI nor a job: help and version. Returns false when it is none of these.
bool answered_at_once(const std::vector<std::string>& words) {
    const auto is_help = [](const std::string& word) { return word == "--help" || word == "-h"; };
    if (words.empty() || is_help(words[0])) {
        print_answer(general_help());
    } else if (words[0] == "--version") {
        print_answer(fmt::format("clt {} ({})\n", version(), revision()));
    } else if (words[0] == "help") {
        const bool markdown = words.back() == "--markdown";
        const std::size_t names = words.size() - 1 - (markdown ? 1 : 0);
        if (names > 1) user_error("clt help takes one command, not {}", names);
        if (names == 0)
            print_answer(markdown ? full_reference_markdown() : general_help());
        else if (!markdown)
            print_answer(command_help(find_command(words[1])));
        else if (const Command& command = find_command(words[1]); !command.job_kind.empty())
            print_answer(job_reference_markdown(command));
        else
            user_error("clt {} reads no job file, so there is no table of its keys", words[1]);
    } else if (words.size() == 2 && is_help(words[1])) {
        print_answer(command_help(find_command(words[0])));
    } else {
        return false;
    }
    return true;
}

int run_command(const std::vector<std::string>& words, const Communicator& world,
                Workers& workers) {
    const Command& command = find_command(words[0]);
    // A command that runs a job of its own kind looks at the flag wherever it may take long.
    if (command.job_kind != command.name) end_at_first_signal();
    world.stop_point("the job started");
    const Arguments arguments(command.name, {words.begin() + 1, words.end()}, command.options,
                              command.positional);
    const auto threads = arguments.positive_integer("threads");
    omp_set_num_threads(threads ? static_cast<int>(*threads) : threads_per_rank(world));
    return command.run(arguments, world, workers);
}

int run_on_ranks(const std::vector<std::string>& words) {
    const Communicator world = Communicator::world();
    const Communicator meeting = world.duplicate();  // for failures alone: nothing else waits on it
    const Heartbeat heartbeat(world);
    Workers workers;
    try {
        return run_command(words, world, workers);
    } catch (...) {
        const Failure failure = current_failure();
        if (meeting.all_arrive_within(arrival_timeout_s)) {
            // All ranks have failed alike, so all have given their workers the same tasks: those
            // end, also where they are in the middle of a collective read.
            workers.finish();
            if (world.rank() == 0) report(failure.message, "clt: ");
            return failure.exit_code;
        }
        report(failure.message, fmt::format("clt: [rank {}] ", world.rank()));
        MpiSession::abort(failure.exit_code);
    }
}

}  // namespace

int main(int argc, char** argv) {
    take_stop_signals();
    open_standard_streams();
    try {
        const std::vector<std::string> words(argv + 1, argv + argc);
        if (answered_at_once(words)) return 0;
        MpiSession session(argc, argv);
        return run_on_ranks(words);
    } catch (...) {
        const Failure failure = current_failure();
        report(failure.message, "clt: ");
        return failure.exit_code;
    }
}
