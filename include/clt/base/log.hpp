// Messages for people, on stderr. Rank 0 speaks for the job; a message only one rank can know uses
// log_here. A log that cannot be written (closed pipe, full disk, a reader that stands still) never
// ends or delays a run: its lines are lost and counted.
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
/// Whole lines on this rank's stderr, as they are.
void log_text(const std::string& text);

/// A command's answer, on stdout. A reader that has left ends it without a word (clt inspect FILE |
/// head). Throws UserError when it cannot be written for another reason.
void print_answer(const std::string& text);

/// Descriptors 0 to 2 that are closed become /dev/null: else a file opened later would get one of
/// these numbers, and the log would be written into it. First in main.
void open_standard_streams();

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
    log_line(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
    log_line("warning: " + fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace clt
