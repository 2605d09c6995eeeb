// [data] of train and evaluate jobs.
#pragma once

#include <string>

#include "clt/base/fields.hpp"
#include "clt/base/types.hpp"

namespace clt {

struct DataConfig {
    std::string path;
    Index batch_tokens = 4096;
    std::string normalization = "mean_std";
    std::string sampling = "sequential";
    Index window_tokens = 0;
    double holdout_fraction = 0.0;
    std::string evaluation_path;
    Index prefetch = 1;
    std::string verify = "first_use";

    template <class V>
    void fields(V& v) {
        v("path", path, rule::required() | rule::path() | rule::execution(),
          "Activation data set: the folder with index.bin; a run that goes on knows it by its "
          "content, wherever it lies");
        v("batch_tokens", batch_tokens, rule::count(), "Tokens of a step over all replicas (B)");
        v("normalization", normalization, rule::one_of({"none", "mean_std", "sqrt_d_model"}),
          "How inputs and targets are scaled; mean_std needs norm_stats.json");
        v("sampling", sampling, rule::one_of({"sequential", "random_chunk"}),
          "Chunks one after the other in random order, or a random chunk for every batch; rows are "
          "always shuffled");
        v("window_tokens", window_tokens, rule::between(0, 1e12),
          "Chunks larger than this are shuffled in pieces of this many rows, which bounds memory; "
          "0: whole chunks");
        v("holdout_fraction", holdout_fraction, rule::between(0, 0.9),
          "Last part of every chunk that is never trained on and used for evaluation");
        v("evaluation_path", evaluation_path, rule::path() | rule::execution(),
          "A second data set for evaluation, instead of a fraction");
        v("prefetch", prefetch, rule::between(0, 16) | rule::execution(),
          "Batches prepared ahead by a thread; 0: none");
        v("verify", verify, rule::one_of({"off", "first_use", "always"}) | rule::execution(),
          "When a chunk is compared with the checksums that generate left in it: never, when it is "
          "first read, or at every read");
    }
};

}  // namespace clt
