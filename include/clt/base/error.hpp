// Three kinds of failure, told apart by type. UserError: the user's input, one sentence that names
// the file, key or value and what was expected (exit 2). LibraryError: a failed call of MPI, HDF5,
// ... (exit 3). InternalError: our bug (exit 4). std::optional is for normal absence. Destructors
// never throw.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace clt {

class UserError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

class LibraryError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

class InternalError : public std::logic_error {
  public:
    using std::logic_error::logic_error;
};

/// Throws UserError with a formatted message.
/// Example: user_error("{}: k = {}, expected a positive integer", file, k);
template <class... Args>
[[noreturn]] void user_error(fmt::format_string<Args...> format, Args&&... args) {
    throw UserError(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws LibraryError: "rank r: call failed with code c: words".
[[noreturn]] void library_error(const char* call, long long code, const std::string& words);

[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               const std::string& what);

/// The rank that error and log messages name; set once by MpiSession (0 before, and without MPI).
void set_process_rank(int rank);
int process_rank();

}  // namespace clt

/// Always on; for our own bugs only, never for input. The condition must have no side effects.
#define CLT_CHECK(condition, ...)                                                       \
    do {                                                                                \
        if (!(condition)) {                                                             \
            ::clt::check_failed(#condition, __FILE__, __LINE__,                         \
                                std::string("") __VA_OPT__(+fmt::format(__VA_ARGS__))); \
        }                                                                               \
    } while (false)
