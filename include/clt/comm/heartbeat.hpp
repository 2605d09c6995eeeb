// Ranks watch each other: one that was stopped, whose host is gone or that is stuck in a call would
// keep the others waiting for ever. A thread a rank sends a few bytes every second or less often,
// on a communicator of its own; rank 0 watches all, all watch rank 0.
#pragma once

#include <memory>

#include "clt/comm/communicator.hpp"

namespace clt {

/// Ends the job with exit_interrupted, and says which rank, host, step and stage, when for longer
/// than the time-out a rank has not answered, or no rank has come any further. One a process, from
/// main.
class Heartbeat {
  public:
    /// Collective. The time-out is 0 (off) until set_timeout.
    explicit Heartbeat(const Communicator& world);
    Heartbeat(const Heartbeat&) = delete;
    Heartbeat& operator=(const Heartbeat&) = delete;
    /// Collective.
    ~Heartbeat();

    /// The same on every rank. 0: off.
    static void set_timeout(double seconds);

  private:
    class Watch;
    std::unique_ptr<Watch> watch_;  // none on a single rank
};

}  // namespace clt
