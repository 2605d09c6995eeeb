// From candidates to the active set.
#include "backend/cuda/index.hpp"

#include <vector>

#include "backend/cuda/cuda_backend.hpp"
#include "backend/resize_active_set.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

cuda::ActiveArrays arrays_of(ActiveSet& set) {
    return {raw(set.row_start.span()), raw(set.token.span()), raw(set.pre.span()),
            raw(set.value.span()), raw(set.gradient.span())};
}

}  // namespace

void CudaBackend::index(const CollectRule& rule, Span<const float> log_threshold, Index rows,
                        Index tokens, const Candidates& candidates, ActiveSet& out) {
    const Index n = found(candidates);
    CLT_CHECK(n <= candidates.capacity());
    const bool thresholded = rule.activation == Activation::jumprelu;
    CLT_CHECK(!thresholded || log_threshold.size() == rows);
    resize_active_set(memory(), rows, tokens, n, out);
    cuda::index(raw(candidates.row.span()), raw(candidates.token.span()),
                raw(candidates.pre.span()), n, thresholded ? raw(log_threshold) : nullptr, rows,
                arrays_of(out), stream());
}

void CudaBackend::merge(Span<const Index> row_starts, std::span<const Index> token_starts,
                        std::span<const Index> part_entries, Span<const std::int32_t> token,
                        Span<const float> pre, Span<const float> value, Index rows, Index tokens,
                        ActiveSet& out) {
    const std::size_t parts = token_starts.size();
    CLT_CHECK(row_starts.size() == static_cast<Index>(parts) * (rows + 1) &&
              part_entries.size() == parts);
    std::vector<Index> starts(token_starts.begin(), token_starts.end());
    Index entries = 0;
    for (const Index own : part_entries) {
        starts.push_back(entries);
        entries += own;
    }
    CLT_CHECK(token.size() >= entries && pre.size() >= entries && value.size() >= entries);
    resize_active_set(memory(), rows, tokens, entries, out);
    auto* device_starts = scratch<Index>(static_cast<Index>(starts.size()));
    upload_bytes(starts.data(), device_starts, starts.size() * sizeof(Index));
    cuda::merge({static_cast<Index>(parts), raw(row_starts), device_starts, device_starts + parts,
                 raw(token), raw(pre), raw(value)},
                rows, arrays_of(out), stream());
}

}  // namespace clt
