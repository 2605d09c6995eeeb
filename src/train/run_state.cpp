#include "clt/train/run_state.hpp"

#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"

namespace clt {

std::string to_json(const RunState& state) {
    return nlohmann::ordered_json{{"tokens", state.tokens},
                                  {"train_s", state.train_s},
                                  {"seconds", state.seconds},
                                  {"metrics_bytes", state.metrics_bytes},
                                  {"skipped_in_a_row", state.skipped_in_a_row},
                                  {"best_step", state.best_step},
                                  {"best_nmse", state.best_nmse},
                                  {"normalization", state.normalization}}
        .dump();
}

RunState parse_run_state(const std::string& json, const std::string& checkpoint) {
    try {
        const auto parsed = nlohmann::json::parse(json);
        RunState state;
        parsed.at("tokens").get_to(state.tokens);
        parsed.at("train_s").get_to(state.train_s);
        parsed.at("seconds").get_to(state.seconds);
        parsed.at("metrics_bytes").get_to(state.metrics_bytes);
        parsed.at("skipped_in_a_row").get_to(state.skipped_in_a_row);
        parsed.at("best_step").get_to(state.best_step);
        parsed.at("best_nmse").get_to(state.best_nmse);
        parsed.at("normalization").get_to(state.normalization);
        return state;
    } catch (const nlohmann::json::exception& error) {
        user_error("{}: expected the state that clt train writes, but: {}", checkpoint,
                   error.what());
    }
}

}  // namespace clt
