#include "clt/base/stop.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>

#include "clt/base/error.hpp"

namespace clt {
namespace {

using Clock = std::chrono::steady_clock;

// One request may come as several signals: SLURM signals the step, and the batch script that
// forwards its own.
constexpr std::chrono::milliseconds one_request{500};

std::atomic<bool> g_requested = false;
std::atomic<int> g_signal = SIGTERM;  // the last that came
std::atomic<bool> g_end_at_first = false;

std::mutex g_acts_mutex;
std::map<int, std::function<void()>> g_acts;
int g_next_act = 0;

// Open MPI's launcher ends a job by SIGCONT at once, SIGTERM after odls_base_sigkill_timeout and
// SIGKILL after that time again: by the SIGCONT, ranks have twice as long to save.
bool is_launchers_announcement(const siginfo_t& info) {
    if (info.si_signo != SIGCONT || info.si_pid != ::getppid()) return false;
    std::string name;
    std::getline(std::ifstream(fmt::format("/proc/{}/comm", info.si_pid)), name);
    constexpr std::array<std::string_view, 4> launchers = {"mpirun", "orterun", "mpiexec", "orted"};
    return std::find(launchers.begin(), launchers.end(), name) != launchers.end();
}

// A thread that waits for signals, instead of handlers: oneDNN's float32 product points the stack
// register into the heap while it runs (2.6 does), and a handler's frame would be written there.
void wait_for_signals(const sigset_t& signals) {
    std::optional<Clock::time_point> first;
    bool announced = false;
    for (;;) {
        siginfo_t info{};
        if (::sigwaitinfo(&signals, &info) < 0) continue;
        if (info.si_signo == SIGCONT) {
            if (first || announced || !is_launchers_announcement(info)) continue;
            announced = true;
        } else if (!first) {
            first = Clock::now();
        } else if (Clock::now() - *first > one_request) {
            leave_at_once(exit_interrupted);
        }
        g_signal = info.si_signo == SIGCONT ? SIGTERM : info.si_signo;
        request_stop();
        if (g_end_at_first) leave_at_once(128 + g_signal);
    }
}

bool is_ignored(int signal) {
    struct sigaction action {};
    return ::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

void take_stop_signals() {
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGXFSZ, SIG_IGN);
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGCONT}) sigaddset(&signals, signal);
    if (!is_ignored(SIGHUP)) sigaddset(&signals, SIGHUP);
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread(wait_for_signals, signals).detach();
}

void end_at_first_signal() {
    g_end_at_first = true;
    if (g_requested) leave_at_once(128 + g_signal);
}

bool stop_requested() {
    return g_requested;
}

void request_stop() {
    g_requested = true;
}

void forget_stop_request() {
    g_requested = false;
}

void stop_point(const std::string& doing) {
    if (stop_requested()) stopped_while(doing);
}

void stopped_while(const std::string& doing) {
    throw Stopped(fmt::format(
        "stopped by a signal while {}: nothing was begun that could be lost, start it again",
        doing));
}

int add_last_act(std::function<void()> act) {
    const std::lock_guard lock(g_acts_mutex);
    g_acts[g_next_act] = std::move(act);
    return g_next_act++;
}

void forget_last_act(int number) {
    const std::lock_guard lock(g_acts_mutex);
    g_acts.erase(number);
}

void do_last_acts() {
    // Whoever holds the lock may never give it back: the process is ending anyhow.
    const std::unique_lock lock(g_acts_mutex, std::try_to_lock);
    if (!lock) return;
    for (const auto& [number, act] : g_acts) act();
    g_acts.clear();
}

void leave_at_once(int exit_code) {
    do_last_acts();
    ::_exit(exit_code);
}

}  // namespace clt
