#include "train/run_state.hpp"

#include <nlohmann/json.hpp>

#include "clt/io/json.hpp"

namespace clt {

std::string to_json(const ForkOrigin& fork) {
    return nlohmann::ordered_json{
        {"checkpoint", fork.checkpoint}, {"step", fork.step}, {"fingerprint", fork.fingerprint}}
        .dump();
}

std::string to_json(const RunState& state) {
    nlohmann::ordered_json json{{"tokens", state.tokens},
                                {"train_s", state.train_s},
                                {"seconds", state.seconds},
                                {"metrics_bytes", state.metrics_bytes},
                                {"metrics_fingerprint", state.metrics_fingerprint},
                                {"record", state.record},
                                {"skipped_in_a_row", state.skipped_in_a_row},
                                {"rollbacks", state.rollbacks},
                                {"best_step", state.best_step},
                                {"best_nmse", state.best_nmse},
                                {"updates_before", state.updates_before}};
    if (state.fork) json["fork"] = nlohmann::ordered_json::parse(to_json(*state.fork));
    return json.dump();
}

RunState parse_run_state(const std::string& json, const std::string& checkpoint) {
    const JsonObject parsed =
        JsonObject::parse(json, checkpoint + ": the state that clt train writes");
    RunState state;
    state.tokens = parsed.integer("tokens", 0);
    state.train_s = parsed.finite("train_s");
    state.seconds = parsed.finite("seconds");
    state.metrics_bytes = parsed.integer("metrics_bytes", 0);
    if (parsed.has("metrics_fingerprint"))  // since format 2
        state.metrics_fingerprint = parsed.text("metrics_fingerprint");
    // Older checkpoints: it is in metrics.jsonl.
    if (parsed.has("record")) state.record = parsed.text("record");
    state.skipped_in_a_row = parsed.integer("skipped_in_a_row", 0);
    state.rollbacks = parsed.integer_or("rollbacks", 0, 0);
    state.best_step = parsed.integer("best_step");
    // Written as null when it was not finite: any finite one is better.
    state.best_nmse = parsed.finite_or("best_nmse", std::numeric_limits<double>::infinity());
    state.updates_before = parsed.integer_or("updates_before", 0, 0);
    if (parsed.has("fork")) {
        const JsonObject fork = parsed.object("fork");
        state.fork = {fork.text("checkpoint"), fork.integer("step", 0), fork.text("fingerprint")};
    }
    return state;
}

}  // namespace clt
