// This rank's parameters with their Adam moments: a feature shard of every layer, and the decoder
// bias, which every rank holds whole. Initial values depend on the seed and the global id alone.
#pragma once

#include <string>
#include <vector>

#include "clt/backend/backend.hpp"
#include "clt/model/config.hpp"
#include "clt/model/shape.hpp"

namespace clt {

/// A log threshold beyond +-this is taken for not finite: its exponential is no normal float32.
inline constexpr float largest_log_threshold = 87;

/// One array of the model as files see it: global rows [first_row, first_row + rows) are here.
struct ParamArray {
    std::string name;  // "encoder/layer_0/weight"
    ParamRows rows;    // value, moment1, moment2: [rows, width]
    Index first_row = 0;
    Index global_rows = 0;
    bool replicated = false;  // every rank holds all rows
};

class Params {
  public:
    /// Allocates and initialises (spec 4.4): encoder weights uniform in +-1/sqrt(F), decoder
    /// weights in +-1/sqrt(L d), biases 0, log thresholds log(threshold), moments 0. Not
    /// collective.
    Params(Backend& backend, const Shape& shape, Shard features, const ModelConfig& config,
           std::uint64_t seed);

    const Shape& shape() const { return shape_; }
    Shard features() const { return features_; }
    Index local_rows() const { return shape_.layers * features_.size(); }

    /// The values were written by other means than backend calls with ParamRows: brings the rounded
    /// copies up to date, and takes all values for finite.
    void values_changed();

    /// [1] 1 when an update has written a number that is not finite (see ParamRows); such a number
    /// stays, whatever updates follow. On this rank.
    Span<double> not_finite() { return not_finite_.span(); }
    /// The first parameter or moment that is not finite over all ranks, as words: "decoder rows of
    /// layer 0, feature 17"; "" when there is none. Looks at every number, through the host.
    /// Collective over `all`.
    std::string find_not_finite(const Communicator& all);

    ParamRows encoder(Index layer);  // [F_p, d], and rounded where the backend's encoder wants it
    ParamRows encoder_bias();        // [1, L * F_p]
    ParamRows log_threshold();       // [1, L * F_p], empty unless jumprelu
    ParamRows decoder(Index layer);  // [F_p, (L - layer) d]
    ParamRows decoder_bias();        // [L, d]

    /// Every array, the same list on every rank (an empty shard has arrays of 0 rows), in file
    /// order: encoder/layer_l/{weight [F, d], bias [F, 1]}, decoder/layer_l/weight [F, (L-l) d],
    /// decoder/bias [L, d], log_threshold/layer_l [F, 1] (jumprelu: natural log).
    std::vector<ParamArray> arrays();

  private:
    struct Store {
        Buffer<float> value, moment1, moment2;
    };
    Store make_store(Index size);
    ParamRows view(Store& store, Index offset, Index rows, Index cols);

    Backend& backend_;
    Shape shape_;
    Shard features_;
    bool thresholds_;
    Store encoder_;
    Buffer<Bfloat16> encoder_rounded_;
    Store encoder_bias_;
    Store log_threshold_;
    std::vector<Store> decoder_;
    Store decoder_bias_;
    Buffer<double> not_finite_;
};

}  // namespace clt
