#include "clt/base/progress.hpp"

#include <atomic>
#include <thread>

namespace clt {
namespace {

const std::thread::id g_main_thread = std::this_thread::get_id();
std::atomic<Index> g_progress = 0;
std::atomic<Index> g_step = 0;
std::atomic<const char*> g_stage = nullptr;
std::atomic<const char*> g_call = nullptr;

void set_call(const char* call) {
    if (std::this_thread::get_id() == g_main_thread) g_call.store(call, std::memory_order_relaxed);
}

}  // namespace

void note_progress() {
    g_progress.fetch_add(1, std::memory_order_relaxed);
}

void note_stage(const char* name) {
    g_stage.store(name, std::memory_order_relaxed);
    note_progress();
}

void note_step(Index step) {
    g_step.store(step, std::memory_order_relaxed);
    note_progress();
}

WaitsIn::WaitsIn(const char* call) {
    set_call(call);
}

WaitsIn::~WaitsIn() {
    set_call(nullptr);
}

Place current_place() {
    return {g_progress, g_step, g_stage, g_call};
}

}  // namespace clt
