// Radix select among the candidates. Digit counts are integers, so any order of counting gives the
// same cut.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"

namespace clt {
namespace {

// Candidates counted or moved by one thread at a time.
constexpr Index block_entries = Index{1} << 14;

/// Entries that are there: those found, or as many as fit.
Index held(const Candidates& candidates) {
    return std::min(*raw(candidates.size.span()), candidates.capacity());
}

/// counts[group, digit] of the n entries; digit(i, group) is below 2^bits, or -1: not counted.
template <class Digit>
void count_entries(Index n, Index groups, const std::int32_t* token, int bits, Index* counts,
                   Digit digit) {
    const Index bins = Index{1} << bits;
    if (groups == 1) {
#pragma omp parallel
        {
            std::vector<Index> own(static_cast<std::size_t>(bins), 0);
#pragma omp for schedule(static) nowait
            for (Index i = 0; i < n; ++i) {
                const Index d = digit(i, Index{0});
                if (d >= 0) ++own[static_cast<std::size_t>(d)];
            }
#pragma omp critical(clt_count_entries)
            for (Index d = 0; d < bins; ++d) counts[d] += own[static_cast<std::size_t>(d)];
        }
        return;
    }
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < n; ++i) {
        const Index group = token[i];
        const Index d = digit(i, group);
        if (d < 0) continue;
#pragma omp atomic
        ++counts[group * bins + d];
    }
}

}  // namespace

void CpuBackend::count_digits(const Candidates& candidates, const Cut& cut, int shift, int bits,
                              Span<Index> counts) {
    CLT_CHECK(counts.size() == cut.groups << bits);
    const std::uint32_t* key = raw(candidates.key.span());
    const std::uint64_t* score = raw(cut.score.span());
    const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
    count_entries(held(candidates), cut.groups, raw(candidates.token.span()), bits, raw(counts),
                  [=](Index i, Index group) -> Index {
                      const std::uint64_t k = key[i];  // 64 bits: shift + bits may be 32
                      if (k >> (shift + bits) != score[group] >> (shift + bits)) return -1;
                      return static_cast<Index>((k >> shift) & mask);
                  });
}

void CpuBackend::count_position_digits(const Candidates& candidates, const PositionMap& map,
                                       const Cut& cut, int shift, int bits, Span<Index> counts) {
    CLT_CHECK(counts.size() == cut.groups << bits);
    const std::uint32_t* key = raw(candidates.key.span());
    const std::int32_t* row = raw(candidates.row.span());
    const std::int32_t* token = raw(candidates.token.span());
    const std::uint64_t* score = raw(cut.score.span());
    const std::uint64_t* chosen = raw(cut.position.span());
    const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
    const bool per_token = cut.groups > 1;
    count_entries(held(candidates), cut.groups, token, bits, raw(counts),
                  [=](Index i, Index group) -> Index {
                      if (key[i] != score[group]) return -1;
                      const std::uint64_t p = map.position(row[i], token[i], per_token);
                      if (p >> (shift + bits) != chosen[group] >> (shift + bits)) return -1;
                      return static_cast<Index>((p >> shift) & mask);
                  });
}

void CpuBackend::choose_digit(Span<const Index> counts, int shift, int bits, bool positions,
                              Cut& cut) {
    const Index bins = Index{1} << bits;
    CLT_CHECK(counts.size() == cut.groups * bins);
    std::uint64_t* chosen = raw((positions ? cut.position : cut.score).span());
    Index* remaining = raw(cut.remaining.span());
#pragma omp parallel for schedule(static) if (cut.groups > 1)
    for (Index group = 0; group < cut.groups; ++group) {
        const Index* count = raw(counts) + group * bins;
        const Index step = positions ? 1 : -1;
        const Index last = positions ? bins - 1 : 0;  // what a group with too few entries gets
        Index digit = positions ? 0 : bins - 1;
        while (digit != last && count[digit] < remaining[group]) {
            remaining[group] -= count[digit];
            digit += step;
        }
        chosen[group] |= static_cast<std::uint64_t>(digit) << shift;
    }
}

void CpuBackend::keep(const PositionMap& map, const Cut& cut, Candidates& candidates) {
    const Index n = held(candidates);
    const Index blocks = (n + block_entries - 1) / block_entries;
    const std::int32_t* row = raw(candidates.row.span());
    const std::int32_t* token = raw(candidates.token.span());
    const float* pre = raw(candidates.pre.span());
    const std::uint32_t* key = raw(candidates.key.span());
    const std::uint64_t* score = raw(cut.score.span());
    const std::uint64_t* last = raw(cut.position.span());
    const bool per_token = cut.groups > 1;
    const auto stays = [&](Index i) {
        const Index group = per_token ? token[i] : 0;
        if (key[i] != score[group]) return key[i] > score[group];
        return map.position(row[i], token[i], per_token) <= last[group];
    };

    Index* starts = index_scratch(blocks + 1);
    starts[0] = 0;
#pragma omp parallel for schedule(static)
    for (Index b = 0; b < blocks; ++b) {
        Index kept = 0;
        for (Index i = b * block_entries; i < std::min(n, (b + 1) * block_entries); ++i)
            kept += stays(i) ? 1 : 0;
        starts[b + 1] = kept;
    }
    for (Index b = 0; b < blocks; ++b) starts[b + 1] += starts[b];

    // As large as the source, which it replaces: the next tiles append without growing it.
    reset(kept_, candidates.capacity(), /*ranked=*/true);
    std::int32_t* to_row = raw(kept_.row.span());
    std::int32_t* to_token = raw(kept_.token.span());
    float* to_pre = raw(kept_.pre.span());
    std::uint32_t* to_key = raw(kept_.key.span());
#pragma omp parallel for schedule(static)
    for (Index b = 0; b < blocks; ++b) {
        Index at = starts[b];
        for (Index i = b * block_entries; i < std::min(n, (b + 1) * block_entries); ++i) {
            if (!stays(i)) continue;
            to_row[at] = row[i];
            to_token[at] = token[i];
            to_pre[at] = pre[i];
            to_key[at] = key[i];
            ++at;
        }
    }
    *raw(kept_.size.span()) = starts[blocks];
    std::swap(candidates, kept_);
}

void CpuBackend::raise_bound(const Cut& cut, Span<float> bound) {
    CLT_CHECK(bound.size() == cut.groups);
    const std::uint64_t* score = raw(cut.score.span());
    float* b = raw(bound);
    for (Index group = 0; group < cut.groups; ++group)
        b[group] = std::max(b[group], value_of_key(static_cast<std::uint32_t>(score[group])));
}

}  // namespace clt
