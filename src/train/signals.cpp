#include "clt/train/signals.hpp"

#include <array>
#include <csignal>
#include <cstddef>

#include "clt/base/error.hpp"

namespace clt {
namespace {

volatile std::sig_atomic_t g_raised = 0;
bool g_installed = false;
struct sigaction g_before_usr1;
struct sigaction g_before_term;

// oneDNN's float32 product points the stack register into the heap while it runs (2.6 does); a
// signal's frame, some KB with AVX-512, would be written there. So handlers have a stack of their
// own. It is the main thread's, which the kernel chooses for a process's signals.
std::array<std::byte, std::size_t{64} << 10> g_stack;
stack_t g_before_stack;

void on_signal(int) {
    g_raised = 1;
}

}  // namespace

InterruptFlag::InterruptFlag() {
    CLT_CHECK(!g_installed, "one InterruptFlag at a time");
    g_installed = true;
    g_raised = 0;
    stack_t stack{};
    stack.ss_sp = g_stack.data();
    stack.ss_size = g_stack.size();
    sigaltstack(&stack, &g_before_stack);
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART | SA_ONSTACK;  // HDF5 and MPI calls in progress go on
    sigaction(SIGUSR1, &action, &g_before_usr1);
    sigaction(SIGTERM, &action, &g_before_term);
}

InterruptFlag::~InterruptFlag() {
    sigaction(SIGUSR1, &g_before_usr1, nullptr);
    sigaction(SIGTERM, &g_before_term, nullptr);
    sigaltstack(&g_before_stack, nullptr);
    g_installed = false;
}

bool InterruptFlag::raised() const {
    return g_raised != 0;
}

}  // namespace clt
