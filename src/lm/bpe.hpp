// Byte pair encoding of one word: symbols, at first its bytes, are merged pair by pair, the pair of
// lowest rank first, the leftmost among equals. Source: Sennrich et al. 2016, section 3.2.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace clt {

class Bpe {
  public:
    /// byte_ids[256]: the id of each byte. Merges come by add_merge, best first.
    explicit Bpe(std::vector<std::int32_t> byte_ids) : byte_ids_(std::move(byte_ids)) {}

    void add_merge(std::int32_t left, std::int32_t right, std::int32_t merged);
    /// Appends the ids of `word`. O(n log n) for n bytes; the scratch makes it one thread's.
    void encode(std::string_view word, std::vector<std::int32_t>& ids);

  private:
    struct Merge {
        std::int32_t rank = 0;
        std::int32_t id = 0;
    };
    struct Symbol {
        std::int32_t id = 0;  // -1: merged into its left neighbour
        std::int32_t previous = 0;
        std::int32_t next = 0;  // -1: the last
    };
    struct Candidate {
        std::int32_t rank = 0;
        std::int32_t position = 0;
        std::int32_t id = 0;
    };
    void propose(std::int32_t position);

    std::vector<std::int32_t> byte_ids_;
    std::int32_t next_rank_ = 0;
    std::unordered_map<std::uint64_t, Merge> merges_;  // by left << 32 | right
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
};

}  // namespace clt
