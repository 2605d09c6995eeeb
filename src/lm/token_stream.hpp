// Text files to sequences of ids, by all ranks together: rank 0 reads, every rank tokenises a part,
// all get all ids (4 bytes a token, next to kilobytes of activations).
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "clt/comm/communicator.hpp"
#include "lm/documents.hpp"
#include "lm/tokenizer.hpp"

namespace clt {

/// Documents cut into pieces of at most `run` ids, in order; a document's last piece may be short
/// and no piece spans two documents.
class SequenceCutter {
  public:
    explicit SequenceCutter(Index run) : run_(run) {}
    /// Calls out(ids) for every piece that is complete.
    template <class Out>
    void add(bool starts_document, std::span<const std::int32_t> ids, Out&& out) {
        if (starts_document) finish(out);
        for (const std::int32_t id : ids) {
            open_.push_back(id);
            if (static_cast<Index>(open_.size()) == run_) finish(out);
        }
    }
    template <class Out>
    void finish(Out&& out) {
        if (!open_.empty()) out(open_);
        open_.clear();
    }

  private:
    Index run_;
    std::vector<std::int32_t> open_;
};

class TokenStream {
  public:
    /// tokenizer: this rank's own; may be null when all files hold ids. Not collective.
    TokenStream(const TextConfig& config, Tokenizer* tokenizer, Index vocabulary,
                const Communicator& world);

    /// Reads on and appends to `sequences` what is complete; false when the files are at their end
    /// and everything has been given out. Collective. Throws UserError on all ranks.
    bool read_more(SequenceCutter& cutter, std::deque<std::vector<std::int32_t>>& sequences);

  private:
    struct Part {  // a fragment after tokenising
        bool starts_document = true;
        std::vector<std::int32_t> ids;
    };
    std::vector<Fragment> read_round();
    std::vector<Fragment> deal(const std::vector<Fragment>& all) const;
    std::vector<Part> tokenise(std::vector<Fragment> mine);
    std::vector<Part> share(const std::vector<Part>& mine) const;

    const TextConfig& config_;
    Tokenizer* tokenizer_;
    Index vocabulary_;
    const Communicator& world_;
    std::size_t file_ = 0;  // rank 0: the next one
    std::unique_ptr<DocumentSource> source_;
    bool finished_ = false;
};

}  // namespace clt
