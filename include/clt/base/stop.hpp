// A request to end: SIGTERM, SIGINT, SIGUSR1 (a scheduler, a user, a launcher) and SIGHUP (a closed
// terminal, unless nohup has it ignored). The first sets a flag that every long phase looks at; it
// then ends in order, with what can be saved saved. A second one ends the process at once: what
// counts is the last checkpoint. One state a process, below everything that looks at it.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <utility>

namespace clt {

/// Exit code of a job that was told to stop and lost nothing that it could save: the batch script
/// starts it again.
inline constexpr int exit_interrupted = 85;

/// Takes the signals, from now to the process's end. The first thing in main, before MPI and before
/// any thread: threads made later leave the signals to the one that is made here. A closed pipe and
/// the shell's limit of a file's size become errors of the write.
void take_stop_signals();

/// For commands that have nothing to save: a first signal ends the process at once too, with
/// 128 + signal.
void end_at_first_signal();

/// A signal has come to this process (ranks have to agree before they act on it).
bool stop_requested();

/// What the first signal does.
void request_stop();
/// For tests, which go on in the same process.
void forget_stop_request();

/// The way out of a phase that has nothing to save; on all ranks together. main ends with
/// exit_interrupted.
class Stopped : public std::exception {
  public:
    explicit Stopped(std::string words) : words_(std::move(words)) {}
    const char* what() const noexcept override { return words_.c_str(); }

  private:
    std::string words_;
};

/// Throws Stopped when a stop is requested: "stopped by a signal while DOING: nothing was begun
/// that could be lost". For work of one rank inside Communicator::together; see also
/// Communicator::stop_point.
void stop_point(const std::string& doing);
/// Throws it whether or not.
[[noreturn]] void stopped_while(const std::string& doing);

/// Called before the process ends without unwinding (a second signal, MPI_Abort): for what would
/// stay behind, e.g. a lock. Not called at an ordinary end. Returns a number for forget_last_act.
int add_last_act(std::function<void()> act);
void forget_last_act(int number);
/// The last acts, once.
void do_last_acts();
/// The last acts, then the end: no destructor runs.
[[noreturn]] void leave_at_once(int exit_code);

}  // namespace clt
