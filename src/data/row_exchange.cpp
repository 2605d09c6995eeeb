#include "data/row_exchange.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "clt/base/philox.hpp"

namespace clt {

std::vector<std::uint32_t> chunk_permutation(std::uint64_t seed, Index chunk, Index rows) {
    CLT_CHECK(chunk >= 0 && chunk < Index{1} << 31 && rows >= 0 && rows < Index{1} << 32);
    std::vector<std::uint32_t> order(static_cast<std::size_t>(rows));
    std::iota(order.begin(), order.end(), 0U);
    for (Index i = rows - 1; i >= 1; --i) {
        // Two words a draw: with one, a million rows would be uneven by 2e-4.
        const std::uint64_t id =
            (static_cast<std::uint64_t>(chunk) << 33) | (static_cast<std::uint64_t>(i) << 1);
        const std::uint64_t high = random_bits(seed, RandomPurpose::chunk_shuffle, id);
        const std::uint64_t low = random_bits(seed, RandomPurpose::chunk_shuffle, id | 1);
        __extension__ using Wide = unsigned __int128;
        const Wide product = Wide{(high << 32) | low} * static_cast<std::uint64_t>(i + 1);
        std::swap(order[static_cast<std::size_t>(i)],
                  order[static_cast<std::size_t>(product >> 64)]);
    }
    return order;
}

RowExchange::RowExchange(const std::vector<std::uint32_t>& permutation,
                         std::span<const Index> counts, Index block_rows,
                         const Communicator& communicator)
    : communicator_(&communicator) {
    const auto ranks = static_cast<std::size_t>(communicator.size());
    const auto me = static_cast<std::size_t>(communicator.rank());
    const auto total = static_cast<Index>(permutation.size());
    std::vector<Index> first(ranks + 1);  // global number of a rank's first row
    for (std::size_t r = 0; r < ranks; ++r) first[r + 1] = first[r] + counts[r];
    CLT_CHECK(first[ranks] == total);

    send_rows_.resize(ranks);
    receive_rows_.resize(ranks);
    const auto place_of = [&](Index rank) {
        const Shard blocks =
            shard_of((total + block_rows - 1) / block_rows, rank, communicator.size());
        return Shard{std::min(total, blocks.begin * block_rows),
                     std::min(total, blocks.end * block_rows)};
    };
    stored_ = place_of(communicator.rank());
    std::vector<std::uint32_t> source(static_cast<std::size_t>(stored_.size()));
    for (std::size_t r = 0; r < ranks; ++r) {
        const Shard place = place_of(static_cast<Index>(r));
        for (Index i = place.begin; i < place.end; ++i) {
            const Index row = permutation[static_cast<std::size_t>(i)];
            if (row >= first[me] && row < first[me + 1]) {
                send_order_.push_back(static_cast<std::uint32_t>(row - first[me]));
                ++send_rows_[r];
            }
            if (r == me) {
                const auto from = std::upper_bound(first.begin() + 1, first.end(), row);
                const auto rank = static_cast<std::size_t>(from - first.begin() - 1);
                source[static_cast<std::size_t>(i - stored_.begin)] =
                    static_cast<std::uint32_t>(rank);
                ++receive_rows_[rank];
            }
        }
    }
    std::vector<std::uint32_t> next(ranks);  // a source's rows come ascending by stored place
    for (std::size_t r = 1; r < ranks; ++r)
        next[r] = next[r - 1] + static_cast<std::uint32_t>(receive_rows_[r - 1]);
    for (const std::uint32_t rank : source) receive_order_.push_back(next[rank]++);
}

const std::byte* RowExchange::exchange(const float* rows, Index stride, Index d_model, DType type) {
    const Index row_bytes = d_model * size_of(type);
    const auto step = static_cast<std::size_t>(row_bytes);
    send_.resize(send_order_.size() * step);
    receive_.resize(receive_order_.size() * step);
    ordered_.resize(receive_order_.size() * step);
    for (std::size_t i = 0; i < send_order_.size(); ++i)
        from_float(type, rows + send_order_[i] * stride, send_.data() + i * step, d_model);
    const auto bytes = [&](std::vector<Index> counts) {
        for (Index& count : counts) count *= row_bytes;
        return counts;
    };
    communicator_->all_to_all(send_.data(), bytes(send_rows_), receive_.data(),
                              bytes(receive_rows_));
    for (std::size_t i = 0; i < receive_order_.size(); ++i)
        std::memcpy(ordered_.data() + i * step, receive_.data() + receive_order_[i] * step, step);
    return ordered_.data();
}

}  // namespace clt
