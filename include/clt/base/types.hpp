// Sizes and shards. Everything counts in 64 bits: decoders pass 2^31 elements.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace clt {

using Index = std::int64_t;

/// Products of sizes stay below this (2^53): exact in a double, and hundreds of bytes for each
/// still fit in 64 bits.
inline constexpr Index largest_size = Index{1} << 53;

/// The product of factors >= 0; absent when it is over `limit`.
constexpr std::optional<Index> product_within(Index limit, std::initializer_list<Index> factors) {
    Index product = 1;
    for (const Index factor : factors) {
        if (factor == 0) return 0;
        if (product > limit / factor) return std::nullopt;
        product *= factor;
    }
    return product;
}

/// A half-open range [begin, end) of features, tokens or rows.
struct Shard {
    Index begin = 0;
    Index end = 0;

    constexpr Index size() const { return end - begin; }
    constexpr bool operator==(const Shard&) const = default;
};

/// Part `part` of `parts` of n things: contiguous, in order, sizes differ by at most one; may be
/// empty. The only place where shards are cut. Example: shard_of(10, 1, 3) == {3, 6}.
constexpr Shard shard_of(Index n, Index part, Index parts) {
    const Index each = n / parts;
    const Index rest = n % parts;
    // Part p starts after floor(p * rest / parts) of the `rest` one-larger parts.
    const Index begin = part * each + part * rest / parts;
    const Index end = (part + 1) * each + (part + 1) * rest / parts;
    return {begin, end};
}

/// The part that owns element i under shard_of(n, ., parts).
constexpr Index shard_owner(Index n, Index i, Index parts) {
    Index part = n == 0 ? 0 : i * parts / n;
    while (part > 0 && i < shard_of(n, part, parts).begin) --part;
    while (part + 1 < parts && i >= shard_of(n, part, parts).end) ++part;
    return part;
}

}  // namespace clt
