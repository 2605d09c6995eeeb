#include "clt/base/error.hpp"

namespace clt {
namespace {
int g_rank = 0;  // written once at start, before any thread
}  // namespace

void set_process_rank(int rank) {
    g_rank = rank;
}
int process_rank() {
    return g_rank;
}

void library_error(const char* call, long long code, const std::string& words) {
    throw LibraryError(
        fmt::format("rank {}: {} failed with code {}: {}", g_rank, call, code, words));
}

void check_failed(const char* condition, const char* file, int line, const std::string& what) {
    throw InternalError(fmt::format("rank {}: {}:{}: {} does not hold{}{}", g_rank, file, line,
                                    condition, what.empty() ? "" : ": ", what));
}

}  // namespace clt
