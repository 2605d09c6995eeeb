// From candidates to the active set. They come sorted, so the row starts are where the row changes.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/elementwise.hpp"
#include "backend/resize_active_set.hpp"

namespace clt {
void CpuBackend::index(const CollectRule& rule, Span<const float> log_threshold, Index rows,
                       Index tokens, const Candidates& candidates, ActiveSet& out) {
    const Index n = found(candidates);
    CLT_CHECK(n <= candidates.capacity());
    const bool thresholded = rule.activation == Activation::jumprelu;
    CLT_CHECK(!thresholded || log_threshold.size() == rows);
    resize_active_set(memory_, rows, tokens, n, out);
    const std::int32_t* row = raw(candidates.row.span());
    const std::int32_t* from_token = raw(candidates.token.span());
    const float* from_pre = raw(candidates.pre.span());
    const float* log_theta = raw(log_threshold);
    Index* row_start = raw(out.row_start.span());
    std::int32_t* token = raw(out.token.span());
    float* pre = raw(out.pre.span());
    float* value = raw(out.value.span());
    float* gradient = raw(out.gradient.span());
    // Entry i starts the rows after its predecessor's up to its own; entry n, all that are left.
#pragma omp parallel for schedule(static)
    for (Index i = 0; i <= n; ++i) {
        const Index first = i == 0 ? 0 : row[i - 1] + 1;
        const Index last = i == n ? rows : row[i];
        for (Index r = first; r <= last; ++r) row_start[r] = i;
    }
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < n; ++i) {
        token[i] = from_token[i];
        pre[i] = from_pre[i];
        value[i] = thresholded ? jumprelu(from_pre[i], jumprelu_threshold(log_theta[row[i]]))
                               : from_pre[i];
        gradient[i] = 0;
    }
}

void CpuBackend::merge(Span<const Index> row_starts, std::span<const Index> token_starts,
                       std::span<const Index> part_entries, Span<const std::int32_t> token,
                       Span<const float> pre, Span<const float> value, Index rows, Index tokens,
                       ActiveSet& out) {
    const auto parts = static_cast<Index>(token_starts.size());
    CLT_CHECK(row_starts.size() == parts * (rows + 1) &&
              part_entries.size() == token_starts.size());
    const Index* starts = raw(row_starts);
    std::vector<Index> part_start;
    Index entries = 0;
    for (const Index own : part_entries) {
        part_start.push_back(entries);
        entries += own;
    }
    CLT_CHECK(token.size() >= entries && pre.size() >= entries && value.size() >= entries);
    resize_active_set(memory_, rows, tokens, entries, out);
    Index* row_start = raw(out.row_start.span());
    std::int32_t* to_token = raw(out.token.span());
    float* to_pre = raw(out.pre.span());
    float* to_value = raw(out.value.span());
    float* gradient = raw(out.gradient.span());
#pragma omp parallel for schedule(static)
    for (Index r = 0; r <= rows; ++r) {
        Index at = 0;
        for (Index p = 0; p < parts; ++p) at += starts[p * (rows + 1) + r];
        row_start[r] = at;
        if (r == rows) continue;
        for (Index p = 0; p < parts; ++p) {
            const Index first = part_start[static_cast<std::size_t>(p)];
            const Index* own = starts + p * (rows + 1) + r;
            const auto shift = static_cast<std::int32_t>(token_starts[static_cast<std::size_t>(p)]);
            for (Index i = first + own[0]; i < first + own[1]; ++i, ++at) {
                to_token[at] = raw(token)[i] + shift;
                to_pre[at] = raw(pre)[i];
                to_value[at] = raw(value)[i];
                gradient[at] = 0;
            }
        }
    }
}

}  // namespace clt
