#include "lm/bpe.hpp"

#include <algorithm>
#include <tuple>

namespace clt {
namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
           static_cast<std::uint32_t>(right);
}

// std::push_heap keeps the largest on top: the order is turned round.
constexpr auto later = [](const auto& a, const auto& b) {
    return std::tie(a.rank, a.position) > std::tie(b.rank, b.position);
};

}  // namespace

void Bpe::add_merge(std::int32_t left, std::int32_t right, std::int32_t merged) {
    // A pair listed twice has the rank of its last line, as in the tokenizers library.
    merges_[key_of(left, right)] = {next_rank_++, merged};
}

void Bpe::propose(std::int32_t position) {
    const Symbol& left = symbols_[static_cast<std::size_t>(position)];
    if (left.next < 0) return;
    const auto found =
        merges_.find(key_of(left.id, symbols_[static_cast<std::size_t>(left.next)].id));
    if (found == merges_.end()) return;
    heap_.push_back({found->second.rank, position, found->second.id});
    std::push_heap(heap_.begin(), heap_.end(), later);
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) {
    const auto n = static_cast<std::int32_t>(word.size());
    symbols_.resize(word.size());
    heap_.clear();
    for (std::int32_t i = 0; i < n; ++i) {
        const auto byte = static_cast<unsigned char>(word[static_cast<std::size_t>(i)]);
        symbols_[static_cast<std::size_t>(i)] = {byte_ids_[byte], i - 1, i + 1 < n ? i + 1 : -1};
    }
    for (std::int32_t i = 0; i + 1 < n; ++i) propose(i);
    while (!heap_.empty()) {
        const Candidate best = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end(), later);
        heap_.pop_back();
        Symbol& left = symbols_[static_cast<std::size_t>(best.position)];
        if (left.id < 0 || left.next < 0) continue;
        Symbol& right = symbols_[static_cast<std::size_t>(left.next)];
        const auto found = merges_.find(key_of(left.id, right.id));
        // One of the two may have changed since this was proposed.
        if (found == merges_.end() || found->second.id != best.id) continue;
        left.id = best.id;
        right.id = -1;
        left.next = right.next;
        if (left.next >= 0) symbols_[static_cast<std::size_t>(left.next)].previous = best.position;
        if (left.previous >= 0) propose(left.previous);
        propose(best.position);
    }
    for (const Symbol& symbol : symbols_)
        if (symbol.id >= 0) ids.push_back(symbol.id);
}

}  // namespace clt
