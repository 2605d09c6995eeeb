// Messages for people, on stderr. Rank 0 speaks for the job; a message only one rank can know uses
// log_here.
#pragma once

#include <fmt/format.h>

#include <string>

namespace clt {

/// One line on rank 0's stderr. Clears a live line first.
void log_line(const std::string& text);
/// One line on this rank's stderr, prefixed with "[rank r] ".
void log_here(const std::string& text);
/// A line that is overwritten by the next one when stderr is a terminal; an ordinary line
/// otherwise. Rank 0 only.
void log_live(const std::string& text);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
    log_line(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
    log_line("warning: " + fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace clt
