#include "clt/base/log.hpp"

#include <unistd.h>

#include <cstdio>

#include "clt/base/error.hpp"

namespace clt {
namespace {
bool g_live_line = false;

void finish_live_line() {
    if (g_live_line) std::fputc('\n', stderr);
    g_live_line = false;
}
}  // namespace

void log_line(const std::string& text) {
    if (process_rank() != 0) return;
    finish_live_line();
    fmt::print(stderr, "{}\n", text);
}

void log_here(const std::string& text) {
    finish_live_line();
    fmt::print(stderr, "[rank {}] {}\n", process_rank(), text);
}

void log_live(const std::string& text) {
    if (process_rank() != 0) return;
    if (isatty(STDERR_FILENO) == 0) {
        fmt::print(stderr, "{}\n", text);
        return;
    }
    fmt::print(stderr, "\r\033[2K{}", text);
    std::fflush(stderr);
    g_live_line = true;
}

}  // namespace clt
