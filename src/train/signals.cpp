#include "clt/train/signals.hpp"

#include <csignal>

#include "clt/base/error.hpp"

namespace clt {
namespace {

volatile std::sig_atomic_t g_raised = 0;
bool g_installed = false;
struct sigaction g_before_usr1;
struct sigaction g_before_term;

void on_signal(int) {
    g_raised = 1;
}

}  // namespace

InterruptFlag::InterruptFlag() {
    CLT_CHECK(!g_installed, "one InterruptFlag at a time");
    g_installed = true;
    g_raised = 0;
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;  // HDF5 and MPI calls in progress go on
    sigaction(SIGUSR1, &action, &g_before_usr1);
    sigaction(SIGTERM, &action, &g_before_term);
}

InterruptFlag::~InterruptFlag() {
    sigaction(SIGUSR1, &g_before_usr1, nullptr);
    sigaction(SIGTERM, &g_before_term, nullptr);
    g_installed = false;
}

bool InterruptFlag::raised() const {
    return g_raised != 0;
}

}  // namespace clt
