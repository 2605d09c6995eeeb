// Where this process is in its work, for the ranks that wait for it (comm/heartbeat.hpp publishes
// it). One state a process; every call costs a few nanoseconds.
#pragma once

#include "clt/base/types.hpp"

namespace clt {

/// Something was done: a stage, a piece of a file. Any thread.
void note_progress();
/// The main thread has come behind this part of a step. name: a literal.
void note_stage(const char* name);
void note_step(Index step);

/// While it lives, the main thread waits for other ranks in this call (a literal). On other threads
/// it does nothing.
class WaitsIn {
  public:
    explicit WaitsIn(const char* call);
    WaitsIn(const WaitsIn&) = delete;
    WaitsIn& operator=(const WaitsIn&) = delete;
    ~WaitsIn();
};

struct Place {
    Index progress = 0;  // grows
    Index step = 0;
    const char* stage = nullptr;  // the last one done; nullptr: none yet
    const char* call = nullptr;   // that waits for other ranks; nullptr: none
};
Place current_place();

}  // namespace clt
