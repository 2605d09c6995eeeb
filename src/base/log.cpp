#include "clt/base/log.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <mutex>
#include <string_view>

#include "clt/base/error.hpp"

namespace clt {
namespace {

// A reader that takes nothing for so long stands still (a stopped pager); the next lines do not
// wait for it.
constexpr int patience_ms = 1000;

std::mutex g_mutex;
bool g_live_line = false;
long long g_lost = 0;      // calls whose text did not get through since the last that did
bool g_torn_line = false;  // the last of them in the middle of a line

/// Returns how many bytes got through, without waiting for long: a pipe that polls as writable
/// takes PIPE_BUF bytes at once.
std::size_t put(std::string_view text, int wait_ms) {
    std::size_t done = 0;
    while (done < text.size()) {
        pollfd ready{STDERR_FILENO, POLLOUT, 0};
        const int polled = ::poll(&ready, 1, wait_ms);
        if (polled < 0 && errno == EINTR) continue;
        if (polled <= 0 || (ready.revents & POLLOUT) == 0) break;
        const auto bytes = std::min<std::size_t>(text.size() - done, PIPE_BUF);
        const ssize_t written = ::write(STDERR_FILENO, text.data() + done, bytes);
        if (written < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (written < 0) break;
        done += static_cast<std::size_t>(written);
    }
    return done;
}

// With the lock held. live: the cursor stays behind the text.
void write_text(const std::string& text, bool live) {
    std::string all;
    if (g_torn_line) all += '\n';
    if (g_live_line && !live) all += '\n';
    if (g_lost > 0) all += fmt::format("({} earlier messages could not be written here)\n", g_lost);
    const std::size_t before = all.size();
    all += text;
    const std::size_t done = put(all, g_lost > 0 ? 0 : patience_ms);
    if (done > 0) g_live_line = false;
    if (done == all.size()) {
        g_lost = 0;
        g_torn_line = false;
        g_live_line = live;
        return;
    }
    if (done >= before) g_lost = 0;
    if (done > 0) g_torn_line = all[done - 1] != '\n';
    ++g_lost;
}

}  // namespace

void log_line(const std::string& text) {
    if (process_rank() == 0) log_text(text + '\n');
}

void log_here(const std::string& text) {
    log_text(fmt::format("[rank {}] {}\n", process_rank(), text));
}

void log_live(const std::string& text) {
    if (process_rank() != 0) return;
    if (::isatty(STDERR_FILENO) == 0) {
        log_text(text + '\n');
        return;
    }
    const std::lock_guard lock(g_mutex);
    write_text("\r\033[2K" + text, /*live=*/true);
}

void log_text(const std::string& text) {
    const std::lock_guard lock(g_mutex);
    write_text(text, /*live=*/false);
}

void print_answer(const std::string& text) {
    for (std::size_t done = 0; done < text.size();) {
        const ssize_t written = ::write(STDOUT_FILENO, text.data() + done, text.size() - done);
        if (written >= 0) {
            done += static_cast<std::size_t>(written);
        } else if (errno == EAGAIN) {
            pollfd ready{STDOUT_FILENO, POLLOUT, 0};
            ::poll(&ready, 1, -1);
        } else if (errno == EPIPE) {
            return;
        } else if (errno != EINTR) {
            user_error("standard output: cannot be written: {}", std::strerror(errno));
        }
    }
}

void open_standard_streams() {
    for (const int number : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        // The lowest free number, which is this one.
        if (::fcntl(number, F_GETFD) < 0) static_cast<void>(::open("/dev/null", O_RDWR));
}

}  // namespace clt
