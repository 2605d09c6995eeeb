// Candidates, the radix select, and the active set they become.
#include <algorithm>
#include <numeric>

#include "backend/backend_test.hpp"
#include "backend/elementwise.hpp"

namespace clt::test {
namespace {

class Select : public BackendTest {
  protected:
    std::vector<Entry> collect(const CollectRule& rule, const std::vector<float>& pre, Index tile,
                               Index tokens, const std::vector<float>& bound,
                               const std::vector<float>& log_threshold = {}) {
        Candidates out;
        backend_.reset(out, tile * tokens, /*ranked=*/true);
        collect_into(rule, pre, tile, tokens, bound, log_threshold, 0, out);
        return entries_of(backend_, out);
    }
    void collect_into(const CollectRule& rule, const std::vector<float>& pre, Index tile,
                      Index tokens, const std::vector<float>& bound,
                      const std::vector<float>& log_threshold, Index first_row, Candidates& out) {
        Array<float> p(backend_, pre);
        Array<double> sums(backend_, 2 * tile, 0.0);
        backend_.tile_sums(p.matrix(tile, tokens), sums.span());
        Array<float> b(backend_, bound);
        Array<float> theta(backend_, log_threshold);
        backend_.collect(rule, p.matrix(tile, tokens), first_row, sums.span(), tokens, b.span(),
                         theta.span(), out);
    }

    /// Selects with `width`-bit digits, as the step does on one rank.
    std::vector<Entry> cut(const std::vector<Entry>& entries, Index groups, Index budget,
                           const PositionMap& map, int width, Candidates* result = nullptr) {
        Candidates candidates = candidates_of(backend_, entries);
        Cut cut;
        cut.groups = groups;
        const auto n = static_cast<std::size_t>(groups);
        write(backend_, std::vector<std::uint64_t>(n, 0), cut.score, Purpose::workspace);
        write(backend_, std::vector<std::uint64_t>(n, 0), cut.position, Purpose::workspace);
        write(backend_, std::vector<Index>(n, budget), cut.remaining, Purpose::workspace);
        for (const bool by_position : {false, true})
            for (int top = by_position ? 40 : 32; top > 0;) {
                const int bits = std::min(width, top);
                top -= bits;
                Array<Index> counts(backend_, groups << bits, Index{0});
                if (by_position)
                    backend_.count_position_digits(candidates, map, cut, top, bits, counts.span());
                else
                    backend_.count_digits(candidates, cut, top, bits, counts.span());
                backend_.choose_digit(counts.span(), top, bits, by_position, cut);
            }
        backend_.keep(map, cut, candidates);
        const auto kept = entries_of(backend_, candidates);
        Array<float> bound(backend_, groups, -infinity);
        backend_.raise_bound(cut, bound.span());
        bounds_ = bound.host();
        const auto keys = read(backend_, candidates.key, backend_.found(candidates));
        for (std::size_t i = 0; i < kept.size(); ++i)
            EXPECT_EQ(keys[i], ordered_key(kept[i].value));
        if (result != nullptr) *result = std::move(candidates);
        return kept;
    }

    std::vector<float> bounds_;
};
CLT_ON_THE_TEST_BACKEND(Select);

CollectRule rule_of(Activation activation, bool zscore = false, bool keep_negative = false,
                    float half_window = 0) {
    return {activation, zscore, keep_negative, half_window};
}

// What collect() must keep of pre[tile, tokens], by a plain loop.
template <class Keep>
std::vector<Entry> expected(const std::vector<float>& pre, Index tile, Index tokens, Keep keep) {
    std::vector<Entry> entries;
    for (Index t = 0; t < tile; ++t)
        for (Index b = 0; b < tokens; ++b) {
            const float p = pre[static_cast<std::size_t>(t * tokens + b)];
            if (keep(p, t, b))
                entries.push_back({static_cast<std::int32_t>(t), static_cast<std::int32_t>(b), p});
        }
    return entries;
}

TEST_P(Select, CollectKeepsWhatTheRuleSaysInOrder) {
    for (const Index tile : {0, 1, 3, 33})
        for (const Index tokens : {0, 1, 31, 32, 33, 64, 65, 200}) {
            auto pre = normal(tile * tokens, 7);
            const std::vector<float> special{nan, infinity, -infinity, -0.0F, 0.0F, 0.5F, 1e-40F};
            for (std::size_t i = 0; i < pre.size(); i += 5)
                pre[i] = special[(i / 5) % special.size()];
            const auto per_token = normal(tokens, 9, 0.5F);
            const std::vector<float> log_theta(static_cast<std::size_t>(tile), std::log(0.5F));
            for (const bool negative : {false, true}) {
                for (const float bound : {-infinity, -0.25F, 0.0F, 0.5F, infinity})
                    EXPECT_EQ(collect(rule_of(Activation::batchtopk, false, negative), pre, tile,
                                      tokens, {bound}),
                              expected(pre, tile, tokens, [&](float p, Index, Index) {
                                  return p >= bound && (negative || p > 0);
                              }));
                EXPECT_EQ(collect(rule_of(Activation::topk, false, negative), pre, tile, tokens,
                                  per_token),
                          expected(pre, tile, tokens, [&](float p, Index, Index b) {
                              return p >= per_token[static_cast<std::size_t>(b)] &&
                                     (negative || p > 0);
                          }));
            }
            EXPECT_EQ(collect(rule_of(Activation::relu), pre, tile, tokens, {}),
                      expected(pre, tile, tokens, [](float p, Index, Index) { return p > 0; }));
            EXPECT_EQ(
                collect(rule_of(Activation::jumprelu, false, false, 0.25F), pre, tile, tokens, {},
                        log_theta),
                expected(pre, tile, tokens, [](float p, Index, Index) { return p >= 0.25F; }));
        }
}

TEST_P(Select, CollectAppendsTiles) {
    Candidates out;
    backend_.reset(out, 9 * 4 * 40, /*ranked=*/false);
    std::vector<Entry> all;
    for (Index tile = 0; tile < 9; ++tile) {
        const auto pre = normal(4 * 40, static_cast<unsigned>(tile));
        collect_into(rule_of(Activation::relu), pre, 4, 40, {}, {}, 4 * tile, out);
        for (Entry entry : expected(pre, 4, 40, [](float p, Index, Index) { return p > 0; })) {
            entry.row += static_cast<std::int32_t>(4 * tile);
            all.push_back(entry);
        }
    }
    EXPECT_EQ(entries_of(backend_, out), all);
}

TEST_P(Select, WhatDoesNotFitIsCountedAndWhatFitsIsKept) {
    const auto pre = normal(4 * 40, 3);
    const auto all = expected(pre, 4, 40, [](float p, Index, Index) { return p > 0; });
    for (const Index room : {0, 1, 30, 31}) {
        Candidates narrow;
        backend_.reset(narrow, room, /*ranked=*/false);
        for (const Index first_row : {0, 4})
            collect_into(rule_of(Activation::relu), pre, 4, 40, {}, {}, first_row, narrow);
        EXPECT_EQ(backend_.found(narrow), 2 * static_cast<Index>(all.size()));
        EXPECT_EQ(entries_of(backend_, narrow),
                  std::vector<Entry>(all.begin(), all.begin() + room));
    }
}

TEST_P(Select, ZscoresRankAndAConstantColumnIsFinite) {
    // Reference-case C2, layer 0: columns (0, 0, 3) and (-1, -2, -3).
    const std::vector<float> pre{0, 0, 3, -1, -2, -3, 5, 5, 5};
    Candidates out;
    backend_.reset(out, 9, /*ranked=*/true);
    collect_into(rule_of(Activation::batchtopk, true, true), pre, 3, 3, {-infinity}, {}, 0, out);
    const auto keys = read(backend_, out.key, backend_.found(out));
    ASSERT_EQ(keys.size(), 9U);
    const std::vector<double> z{-0.577350, -0.577350, 1.154700, 1.0, 0, -1, 0, 0, 0};
    for (std::size_t i = 0; i < keys.size(); ++i)
        expect_near(value_of_key(keys[i]), z[i], 2e-6, "z-score");  // six printed digits
    // One token has no deviation: every score is NaN and nothing is selected (spec 5.4).
    EXPECT_TRUE(
        collect(rule_of(Activation::batchtopk, true, true), {1, 2, 3}, 3, 1, {-infinity}).empty());
    // Without keep_negative a positive score does not save a negative entry.
    const auto positive = collect(rule_of(Activation::batchtopk, true, false), pre, 3, 3, {0.5F});
    EXPECT_EQ(positive, (std::vector<Entry>{{0, 2, 3}}));
    const auto by_token = collect(rule_of(Activation::topk, true, true), pre, 3, 3, {0.5F, -1, 2});
    EXPECT_EQ(by_token, (std::vector<Entry>{{0, 1, 0}, {1, 0, -1}, {1, 1, -2}, {2, 1, 5}}));
}

// Sorts by (value descending, position ascending) and keeps the first `budget` of each group.
std::vector<Entry> best(std::vector<Entry> entries, bool per_token, Index budget,
                        const PositionMap& map) {
    const auto position = [&](const Entry& e) {
        const Index layer = e.row / map.local_features;
        const Index column =
            layer * map.global_features + map.first_feature + e.row % map.local_features;
        return std::pair<Index, Index>(per_token ? 0 : e.token, column);
    };
    std::stable_sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
        if (per_token && a.token != b.token) return a.token < b.token;
        if (a.value != b.value) return a.value > b.value;
        return position(a) < position(b);
    });
    std::vector<Entry> kept;
    Index in_group = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const bool new_group = i == 0 || (per_token && entries[i].token != entries[i - 1].token);
        in_group = new_group ? 1 : in_group + 1;
        if (in_group <= budget) kept.push_back(entries[i]);
    }
    std::sort(kept.begin(), kept.end(), [](const Entry& a, const Entry& b) {
        return std::pair(a.row, a.token) < std::pair(b.row, b.token);
    });
    return kept;
}

TEST_P(Select, KeepsExactlyTheBudgetByScoreThenPosition) {
    const PositionMap map{5, 12, 4, 3, 100};  // features 4..8 of 12, 3 layers
    for (const bool ties : {false, true})
        for (const bool per_token : {false, true})
            for (const Index budget : {0, 1, 2, 3, 7, 40, 100000})
                for (const int width : {4, 8, 11}) {
                    auto entries = random_entries(15, 33, 0.6, 5);
                    for (Entry& entry : entries) {
                        if (ties) entry.value = std::round(entry.value);
                        if (entry.value == 0) entry.value = entry.token % 2 == 0 ? 0.0F : -0.0F;
                    }
                    entries[3].value = infinity;
                    entries[4].value = -infinity;
                    EXPECT_EQ(cut(entries, per_token ? 33 : 1, budget, map, width),
                              best(entries, per_token, budget, map))
                        << "ties " << ties << " per token " << per_token << " budget " << budget
                        << " width " << width;
                }
}

TEST_P(Select, AllEqualKeepsTheFirstPositions) {
    const PositionMap map{4, 4, 0, 1, 0};
    std::vector<Entry> entries;
    for (std::int32_t row = 0; row < 4; ++row)
        for (std::int32_t token = 0; token < 2; ++token) entries.push_back({row, token, 1});
    // Reference-case C1: ones(2 x 4), k = 1 keeps exactly two; lower (token, layer, feature) wins.
    EXPECT_EQ(cut(entries, 1, 2, map, 11), (std::vector<Entry>{{0, 0, 1}, {1, 0, 1}}));
    EXPECT_EQ(bounds_[0], 1);
    EXPECT_EQ(cut(entries, 1, 5, map, 11),
              (std::vector<Entry>{{0, 0, 1}, {0, 1, 1}, {1, 0, 1}, {2, 0, 1}, {3, 0, 1}}));
    EXPECT_TRUE(cut({}, 1, 5, map, 11).empty());
}

TEST_P(Select, BoundsRiseToTheLastKeptAndNeverFall) {
    const PositionMap map{4, 4, 0, 1, 0};
    cut({{0, 0, 3}, {1, 0, 1}, {1, 1, 7}, {2, 1, 5}, {3, 1, -2}}, 2, 2, map, 4);
    EXPECT_EQ(bounds_, (std::vector<float>{1, 5}));
    cut({{0, 0, 3}}, 1, 2, map, 11);  // fewer than asked for: no bound
    EXPECT_EQ(bounds_, (std::vector<float>{-infinity}));
    Cut low;
    low.groups = 1;
    write(backend_, std::vector<std::uint64_t>{ordered_key(1)}, low.score, Purpose::workspace);
    Array<float> bound(backend_, {2});
    backend_.raise_bound(low, bound.span());
    EXPECT_EQ(bound.host()[0], 2);
}

TEST_P(Select, ManyCandidatesCrossEveryBlock) {
    const PositionMap map{100, 100, 0, 1, 0};
    auto entries = random_entries(100, 700, 0.9, 3);
    for (Entry& entry : entries) entry.value = std::round(entry.value * 64) / 64;
    EXPECT_EQ(cut(entries, 1, 20000, map, 11), best(entries, false, 20000, map));
}

// More groups than a block has warps, and tokens without entries.
TEST_P(Select, ManyTokensAreCutApart) {
    const PositionMap map{20, 20, 0, 2, 0};
    auto entries = random_entries(40, 300, 0.3, 8);
    std::erase_if(entries, [](const Entry& e) { return e.token % 50 == 7; });
    for (Entry& entry : entries) entry.value = std::round(entry.value * 4);
    EXPECT_EQ(cut(entries, 300, 5, map, 4), best(entries, true, 5, map));
}

// More chunks than one block scans at once; equal keys are kept by their position, on the edge of a
// chunk too.
TEST_P(Select, KeepMovesMoreThanOneBlockScans) {
    const Index tokens = 1000;
    const Index rows = 700;
    const PositionMap map{rows, rows, 0, 1, 0};
    std::vector<Entry> entries;
    std::vector<Entry> kept;
    Cut cut;
    cut.groups = 1;
    const auto last = static_cast<std::uint64_t>(400 * rows);  // tokens below 400, all rows
    for (std::int32_t row = 0; row < rows; ++row)
        for (std::int32_t token = 0; token < tokens; ++token) {
            const auto value = static_cast<float>((row + token) % 3);
            entries.push_back({row, token, value});
            if (value > 1 || (value == 1 && token * rows + row <= static_cast<Index>(last)))
                kept.push_back(entries.back());
        }
    Candidates candidates = candidates_of(backend_, entries);
    const Index capacity = candidates.capacity();
    write(backend_, std::vector<std::uint64_t>{ordered_key(1)}, cut.score, Purpose::workspace);
    write(backend_, std::vector<std::uint64_t>{last}, cut.position, Purpose::workspace);
    backend_.keep(map, cut, candidates);
    EXPECT_EQ(candidates.capacity(), capacity);
    EXPECT_TRUE(entries_of(backend_, candidates) == kept);  // too many to print
}

// Candidates that did not fit are counted in the size: nothing beyond the capacity may be read.
TEST_P(Select, OnlyCandidatesThatFitAreCut) {
    const PositionMap map{10, 10, 0, 1, 0};
    auto entries = random_entries(10, 60, 1, 4);
    Candidates candidates = candidates_of(backend_, entries);
    write(backend_, std::vector<Index>{100000}, candidates.size, Purpose::candidates);
    Cut cut;
    cut.groups = 1;
    write(backend_, std::vector<std::uint64_t>{ordered_key(0)}, cut.score, Purpose::workspace);
    write(backend_, std::vector<std::uint64_t>{0}, cut.position, Purpose::workspace);
    Array<Index> counts(backend_, Index{1} << 11, Index{0});
    backend_.count_digits(candidates, cut, 21, 11, counts.span());
    const auto counted = counts.host();
    EXPECT_EQ(std::accumulate(counted.begin(), counted.end(), Index{0}), 600);
    backend_.keep(map, cut, candidates);
    std::erase_if(entries, [](const Entry& e) { return e.value <= 0; });
    EXPECT_EQ(entries_of(backend_, candidates), entries);
    EXPECT_EQ(backend_.found(candidates), static_cast<Index>(entries.size()));
}

std::vector<float> values_of(const std::vector<Entry>& entries) {
    std::vector<float> values;
    for (const Entry& entry : entries) values.push_back(entry.value);
    return values;
}

class Active : public BackendTest {
  protected:
    void expect_set(const ActiveSet& set, const std::vector<Entry>& entries,
                    const std::vector<float>& pre) {
        ASSERT_EQ(set.entries, static_cast<Index>(entries.size()));
        const auto start = read(backend_, set.row_start, set.rows + 1);
        const auto token = read(backend_, set.token, set.entries);
        const auto value = read(backend_, set.value, set.entries);
        EXPECT_EQ(read(backend_, set.pre, set.entries), pre);
        EXPECT_EQ(read(backend_, set.gradient, set.entries),
                  std::vector<float>(entries.size(), 0.0F));
        std::vector<Entry> got;
        for (std::int32_t row = 0; row < set.rows; ++row)
            for (Index i = start[static_cast<std::size_t>(row)];
                 i < start[static_cast<std::size_t>(row) + 1]; ++i)
                got.push_back(
                    {row, token[static_cast<std::size_t>(i)], value[static_cast<std::size_t>(i)]});
        EXPECT_EQ(got, entries);
        EXPECT_EQ(start.front(), 0);
        EXPECT_EQ(start.back(), set.entries);
    }

    void expect_merge(Index rows, const std::vector<Index>& tokens) {
        std::vector<Index> starts;
        std::vector<Index> token_starts;
        std::vector<Index> part_entries;
        std::vector<std::int32_t> token;
        std::vector<float> value;
        std::vector<Entry> all;
        Index first = 0;
        for (std::size_t part = 0; part < tokens.size(); ++part) {
            const auto entries =
                random_entries(rows, tokens[part], 0.4, static_cast<unsigned>(part + 1));
            const ActiveSet own = active_set(backend_, rows, tokens[part], entries);
            const auto own_starts = read(backend_, own.row_start, rows + 1);
            starts.insert(starts.end(), own_starts.begin(), own_starts.end());
            token_starts.push_back(first);
            part_entries.push_back(own.entries);
            for (Entry entry : entries) {
                token.push_back(entry.token);
                value.push_back(entry.value);
                entry.token += static_cast<std::int32_t>(first);
                all.push_back(entry);
            }
            first += tokens[part];
        }
        std::stable_sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) {
            return std::pair(a.row, a.token) < std::pair(b.row, b.token);
        });
        Array<Index> d_starts(backend_, starts);
        Array<std::int32_t> d_token(backend_, token);
        Array<float> d_value(backend_, value);
        ActiveSet merged;
        backend_.merge(d_starts.span(), token_starts, part_entries, d_token.span(), d_value.span(),
                       d_value.span(), rows, first, merged);
        expect_set(merged, all, values_of(all));
    }
};
CLT_ON_THE_TEST_BACKEND(Active);

TEST_P(Active, IndexStartsEveryRow) {
    ActiveSet set;
    for (const Index rows : {0, 1, 2, 33})
        for (const Index tokens : {1, 31})
            for (const double density : {0.0, 0.05, 1.0}) {
                const auto entries = random_entries(rows, tokens, density, 3);
                backend_.index(rule_of(Activation::batchtopk), {}, rows, tokens,
                               candidates_of(backend_, entries), set);
                expect_set(set, entries, values_of(entries));
            }
}

// One feature on every token, far from the others.
TEST_P(Active, IndexSkipsLongStretchesOfEmptyRows) {
    std::vector<Entry> entries{{3, 2, 1}};
    for (std::int32_t token = 0; token < 700; ++token) entries.push_back({4000, token, 2});
    entries.push_back({4001, 699, 3});
    ActiveSet set;
    for (const Index rows : {4002, 9000}) {
        backend_.index(rule_of(Activation::relu), {}, rows, 700, candidates_of(backend_, entries),
                       set);
        expect_set(set, entries, values_of(entries));
    }
}

TEST_P(Active, IndexValuesAreZeroBelowTheThreshold) {
    const float theta = jumprelu_threshold(std::log(0.5F));
    Array<float> log_theta(backend_, {std::log(0.5F), std::log(0.5F)});
    const std::vector<Entry> entries{{0, 0, 0.4F}, {0, 1, theta}, {1, 0, 0.6F}, {1, 2, 0.1F}};
    ActiveSet set;
    backend_.index(rule_of(Activation::jumprelu, false, false, 0.5F), log_theta.span(), 2, 3,
                   candidates_of(backend_, entries), set);
    auto cut = entries;
    cut[0].value = cut[3].value = 0;
    expect_set(set, cut, values_of(entries));
    EXPECT_EQ(theta, 0.5F);  // C5 needs the edge exactly
}

TEST_P(Active, MergePutsReplicasSideBySide) {
    expect_merge(7, {5, 0, 9});
    expect_merge(300, {100});
    std::vector<Index> many(70, 3);  // more parts than a warp has lanes
    many[5] = 80;
    expect_merge(7, many);
}

TEST_P(Active, CountsAddUpAndNegativesDoNotFire) {
    // Reference-case C9: -0.3 and 1e-7 are active and do not fire.
    const ActiveSet set = active_set(
        backend_, 3, 4, {{0, 2, -0.3F}, {1, 0, 1.5F}, {1, 1, 2}, {1, 3, 1e-7F}, {2, 0, 0}});
    Array<Index> active(backend_, {10, 0, 0});
    Array<Index> fired(backend_, {0, 20, 0});
    backend_.count(set, active.span(), fired.span());
    EXPECT_EQ(active.host(), (std::vector<Index>{11, 3, 0}));
    EXPECT_EQ(fired.host(), (std::vector<Index>{0, 22, 0}));
}

// Rows of every length around a warp's, one with all tokens, and more rows than a block.
TEST_P(Active, CountsLongRows) {
    const Index rows = 300;
    const Index tokens = 700;
    std::vector<Entry> entries;
    std::vector<Index> active(static_cast<std::size_t>(rows), 5);
    std::vector<Index> fired(static_cast<std::size_t>(rows), 7);
    for (std::int32_t row = 0; row < rows; ++row)
        for (std::int32_t token = 0; token < (row == 131 ? tokens : row % 67); ++token) {
            const float value = token % 3 == 0 ? 0.0F : token % 3 == 1 ? -1.0F : 1.0F;
            entries.push_back({row, token, value});
            active[static_cast<std::size_t>(row)] += value != 0 ? 1 : 0;
            fired[static_cast<std::size_t>(row)] += value > 0 ? 1 : 0;
        }
    Array<Index> d_active(backend_, rows, Index{5});
    Array<Index> d_fired(backend_, rows, Index{7});
    backend_.count(active_set(backend_, rows, tokens, entries), d_active.span(), d_fired.span());
    EXPECT_EQ(d_active.host(), active);
    EXPECT_EQ(d_fired.host(), fired);
}

TEST_P(Active, PartsOfCountsAreSummed) {
    for (const auto& [parts, each] :
         {std::pair<Index, Index>{1, 0}, {3, 1}, {2, 1030}, {1, 2500}}) {
        std::vector<Index> counts;
        std::vector<Index> totals(static_cast<std::size_t>(parts), 0);
        for (Index i = 0; i < parts * each; ++i) {
            counts.push_back((i * i % 1009) << 32);
            totals[static_cast<std::size_t>(i / each)] += counts.back();
        }
        Array<Index> d_counts(backend_, counts);
        Array<Index> d_totals(backend_, parts, Index{-1});
        backend_.sum_parts(d_counts.span(), d_totals.span());
        EXPECT_EQ(d_totals.host(), totals);
    }
}

}  // namespace
}  // namespace clt::test
