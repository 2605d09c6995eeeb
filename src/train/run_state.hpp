// The trainer's own state, kept in a checkpoint's `extra` as JSON.
#pragma once

#include <optional>
#include <string>

#include "clt/train/checkpoint.hpp"

namespace clt {

/// The checkpoint of another run that a run started from.
struct ForkOrigin {
    std::string checkpoint;  // absolute path, as it was then
    Index step = 0;
    std::string fingerprint;  // of that checkpoint's texts
};

struct RunState {
    Index step = 0;                   // steps done; in the checkpoint itself, not in the JSON
    Index tokens = 0;                 // trained on
    double train_s = 0;               // in steps, waiting included
    double seconds = 0;               // of earlier legs, evaluations and checkpoints included
    Index metrics_bytes = 0;          // length of metrics.jsonl: a resumed run cuts it here
    std::string metrics_fingerprint;  // of these bytes; empty: not known
    std::string record;               // of this step, not yet in metrics.jsonl; empty: it has none
    Index skipped_in_a_row = 0;
    Index rollbacks = 0;  // so far, by [run] on_nonfinite
    Index best_step = 0;  // checkpoint with the lowest held-out NMSE; 0: none yet
    double best_nmse = 0;
    Index updates_before = 0;  // in the moments when the run began: a fork's
    std::optional<ForkOrigin> fork;
    SelectionThreshold threshold;  // in the checkpoint itself, not in the JSON
};

std::string to_json(const ForkOrigin& fork);
std::string to_json(const RunState& state);
/// Throws UserError naming the checkpoint.
RunState parse_run_state(const std::string& json, const std::string& checkpoint);

}  // namespace clt
