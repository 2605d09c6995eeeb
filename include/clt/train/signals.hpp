// SIGUSR1 and SIGTERM as a request to stop: a scheduler sends one of them before the time limit or
// a preemption, and the trainer looks at the flag after each step.
#pragma once

namespace clt {

/// While one lives, SIGUSR1 and SIGTERM only set a flag; afterwards the earlier handlers are back.
/// At most one a process.
class InterruptFlag {
  public:
    InterruptFlag();
    InterruptFlag(const InterruptFlag&) = delete;
    InterruptFlag& operator=(const InterruptFlag&) = delete;
    ~InterruptFlag();

    /// A signal has come to this process (ranks have to agree before they act on it).
    bool raised() const;
};

}  // namespace clt
