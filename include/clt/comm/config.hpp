// [job], [grid] and the common part of [run] of every job file.
#pragma once

#include <string>

#include "clt/base/fields.hpp"
#include "clt/base/types.hpp"

namespace clt {

struct JobConfig {
    std::string kind;
    std::string output;
    Index seed = 42;
    std::string backend = "cpu";
    std::string precision = "auto";

    template <class V>
    void fields(V& v) {
        v("kind", kind, rule::required() | rule::one_of({"generate", "train", "evaluate"}),
          "The subcommand that runs this file");
        v("output", output, rule::required() | rule::path() | rule::execution(),
          "Folder of the results; made when missing");
        v("seed", seed, rule::at_least(0), "Seed of every random number of the job");
        v("backend", backend, rule::one_of({"cpu", "cuda"}) | rule::free(),
          "Where the kernels run; cuda needs a build with CUDA and a GPU");
        v("precision", precision, rule::one_of({"auto", "float32", "tf32", "bfloat16"}),
          "Of the encoder's product, tf32 of every product; auto: bfloat16 on cuda, float32 on "
          "cpu");
    }
};

struct GridConfig {
    Index data = 1;
    Index feature = 0;

    template <class V>
    void fields(V& v) {
        v("data", data, rule::between(1, 1e6) | rule::execution(),
          "Data replicas; each encodes its own part of a batch");
        v("feature", feature, rule::between(0, 1e6) | rule::execution(),
          "Feature shards; 0: the number of ranks / data");
    }
};

struct WatchConfig {
    Index timeout_s = 600;

    template <class V>
    void fields(V& v) {
        v("timeout_s", timeout_s, rule::at_least(0) | rule::execution(),
          "Ranks that have waited so long for one that does not answer, or comes no further, say "
          "which and end the job (exit code 85: start it again); 0: they wait for ever");
    }
};

}  // namespace clt
