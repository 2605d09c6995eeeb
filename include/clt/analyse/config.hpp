// The job of `clt evaluate`. The model's settings come from the checkpoint.
#pragma once

#include <string>

#include "clt/base/fields.hpp"
#include "clt/comm/config.hpp"
#include "clt/data/config.hpp"

namespace clt {

struct EvaluateConfig {
    std::string checkpoint;
    Index tokens = 0;
    std::string rows = "heldout";

    template <class V>
    void fields(V& v) {
        v("checkpoint", checkpoint, rule::required() | rule::path(),
          "A checkpoint file, or a folder of them: the newest whole one");
        v("tokens", tokens, rule::at_least(0), "Tokens evaluated; 0: all");
        v("rows", rows, rule::one_of({"heldout", "all"}),
          "heldout: what data.holdout_fraction or data.evaluation_path names; all: the whole of "
          "data.path");
    }
};

struct EvaluateJob {
    JobConfig job;
    GridConfig grid;
    DataConfig data;
    EvaluateConfig evaluate;
    WatchConfig run;

    template <class V>
    void tables(V& v) {
        v("job", job, "What the job is and where its results go", {"seed"});
        v("grid", grid, "Ranks: data replicas x feature shards");
        v("data", data, "Activations and batches; they are normalised as the checkpoint says",
          {"normalization", "sampling", "window_tokens"});
        v("evaluate", evaluate, "What is judged, and on which tokens");
        v("run", run, "What the job does when something goes wrong");
    }
};

}  // namespace clt
