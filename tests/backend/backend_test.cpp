#include "backend/backend_test.hpp"

#include "support/scratch.hpp"

namespace clt::test {

ActiveSet active_set(Backend& backend, Index rows, Index tokens,
                     const std::vector<Entry>& entries) {
    ActiveSet set;
    set.rows = rows;
    set.tokens = tokens;
    set.entries = static_cast<Index>(entries.size());
    std::vector<Index> row_start(static_cast<std::size_t>(rows + 1), 0);
    std::vector<std::int32_t> token;
    std::vector<float> value;
    for (const Entry& entry : entries) {
        ++row_start[static_cast<std::size_t>(entry.row + 1)];
        token.push_back(entry.token);
        value.push_back(entry.value);
    }
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
        row_start[r + 1] += row_start[r];
    write(backend, row_start, set.row_start, Purpose::active_set);
    write(backend, token, set.token, Purpose::active_set);
    write(backend, value, set.pre, Purpose::active_set);
    write(backend, value, set.value, Purpose::active_set);
    write(backend, std::vector<float>(entries.size(), 0), set.gradient, Purpose::active_set);
    return set;
}

std::vector<Entry> random_entries(Index rows, Index tokens, double density, unsigned seed) {
    std::mt19937 generator(seed);
    std::bernoulli_distribution active(density);
    std::normal_distribution<float> value;
    std::vector<Entry> entries;
    for (std::int32_t row = 0; row < rows; ++row)
        for (std::int32_t token = 0; token < tokens; ++token)
            if (active(generator)) entries.push_back({row, token, value(generator)});
    return entries;
}

Candidates candidates_of(Backend& backend, const std::vector<Entry>& entries) {
    std::vector<std::int32_t> row;
    std::vector<std::int32_t> token;
    std::vector<float> pre;
    std::vector<std::uint32_t> key;
    for (const Entry& entry : entries) {
        row.push_back(entry.row);
        token.push_back(entry.token);
        pre.push_back(entry.value);
        key.push_back(ordered_key(entry.value));
    }
    Candidates candidates;
    write(backend, {static_cast<Index>(entries.size())}, candidates.size, Purpose::candidates);
    write(backend, row, candidates.row, Purpose::candidates);
    write(backend, token, candidates.token, Purpose::candidates);
    write(backend, pre, candidates.pre, Purpose::candidates);
    write(backend, key, candidates.key, Purpose::candidates);
    return candidates;
}

std::vector<Entry> entries_of(Backend& backend, const Candidates& candidates) {
    const Index n = std::min(backend.found(candidates), candidates.capacity());
    const auto row = read(backend, candidates.row, n);
    const auto token = read(backend, candidates.token, n);
    const auto pre = read(backend, candidates.pre, n);
    std::vector<Entry> entries;
    for (std::size_t i = 0; i < row.size(); ++i) entries.push_back({row[i], token[i], pre[i]});
    return entries;
}

TEST(MakeBackend, NamesWhatIsMissing) {
    EXPECT_EQ(make_backend("cpu", Communicator::world())->name(), "cpu");
    EXPECT_EQ(message_of<UserError>([] { make_backend("tpu", Communicator::world()); }),
              "backend = \"tpu\": expected \"cpu\" or \"cuda\"");
    EXPECT_EQ(message_of<UserError>([] { make_backend("cpu", Communicator::world(), "bfloat16"); }),
              "precision = \"bfloat16\": the cpu backend multiplies in float32");
}

}  // namespace clt::test
