// Mean and standard deviation of every column over tokens that come in blocks, in double
// (reference-spec 1.5, case C10). A block's sums are formed about its own mean and merged into the
// total, so nothing cancels. Source: Chan, Golub, LeVeque 1979, "Updating formulae".
#pragma once

#include <span>
#include <string>
#include <vector>

#include "clt/comm/communicator.hpp"

namespace clt {

class ColumnStatistics {
  public:
    explicit ColumnStatistics(Index columns);

    /// Adds a block of rows [n, columns], each rank its own part. The result depends on the split
    /// over ranks by rounding of doubles only. Collective.
    void add(std::span<const float> rows, const Communicator& communicator);

    Index count() const { return count_; }
    const std::vector<double>& mean() const { return mean_; }
    /// sqrt(M2 / max(n - 1, 1)), [columns].
    std::vector<double> standard_deviation() const;

    /// Everything, as raw bytes of this machine; bit for bit restored by restore().
    std::string save() const;
    /// False when the bytes are not of save() with the same number of columns.
    bool restore(std::string_view bytes);

  private:
    Index count_ = 0;
    std::vector<double> mean_;
    std::vector<double> squares_;  // sum of squared deviations from the mean (M2)
};

}  // namespace clt
