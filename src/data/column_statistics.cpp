#include "data/column_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace clt {

ColumnStatistics::ColumnStatistics(Index columns)
    : mean_(static_cast<std::size_t>(columns)), squares_(static_cast<std::size_t>(columns)) {}

void ColumnStatistics::add(std::span<const float> rows, const Communicator& communicator) {
    const std::size_t columns = mean_.size();
    CLT_CHECK(columns > 0 && rows.size() % columns == 0);
    const Index block = communicator.all_reduce_sum(static_cast<Index>(rows.size() / columns));
    if (block == 0) return;

    std::vector<double> block_mean(columns);
    for (std::size_t at = 0; at < rows.size(); at += columns)
        for (std::size_t c = 0; c < columns; ++c) block_mean[c] += double{rows[at + c]};
    communicator.all_reduce_sum(std::span(block_mean));
    for (double& mean : block_mean) mean /= static_cast<double>(block);

    std::vector<double> block_squares(columns);
    for (std::size_t at = 0; at < rows.size(); at += columns)
        for (std::size_t c = 0; c < columns; ++c) {
            const double deviation = double{rows[at + c]} - block_mean[c];
            block_squares[c] += deviation * deviation;
        }
    communicator.all_reduce_sum(std::span(block_squares));

    const auto n = static_cast<double>(count_);
    const auto b = static_cast<double>(block);
    for (std::size_t c = 0; c < columns; ++c) {
        const double delta = block_mean[c] - mean_[c];
        mean_[c] += delta * b / (n + b);
        squares_[c] += block_squares[c] + delta * delta * n * b / (n + b);
    }
    count_ += block;
}

std::vector<double> ColumnStatistics::standard_deviation() const {
    std::vector<double> deviation(squares_.size());
    const auto freedom = static_cast<double>(std::max<Index>(count_ - 1, 1));
    std::transform(squares_.begin(), squares_.end(), deviation.begin(),
                   [&](double squares) { return std::sqrt(squares / freedom); });
    return deviation;
}

std::string ColumnStatistics::save() const {
    std::string bytes(reinterpret_cast<const char*>(&count_), sizeof count_);
    for (const auto* values : {&mean_, &squares_})
        bytes.append(reinterpret_cast<const char*>(values->data()),
                     values->size() * sizeof(double));
    return bytes;
}

bool ColumnStatistics::restore(std::string_view bytes) {
    const std::size_t block = mean_.size() * sizeof(double);
    if (bytes.size() != sizeof count_ + 2 * block) return false;
    std::memcpy(&count_, bytes.data(), sizeof count_);
    std::memcpy(mean_.data(), bytes.data() + sizeof count_, block);
    std::memcpy(squares_.data(), bytes.data() + sizeof count_ + block, block);
    return true;
}

}  // namespace clt
