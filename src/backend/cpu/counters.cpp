// How often features are active.
#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/parallel.hpp"
#include "backend/elementwise.hpp"

namespace clt {

void CpuBackend::count(const ActiveSet& active, Span<Index> active_tokens,
                       Span<Index> fired_tokens) {
    CLT_CHECK(active_tokens.size() == active.rows && fired_tokens.size() == active.rows);
    const Index* row_start = raw(active.row_start.span());
    const float* value = raw(active.value.span());
    Index* actives = raw(active_tokens);
    Index* fired = raw(fired_tokens);
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < active.rows; ++row)
        for (Index i = row_start[row]; i < row_start[row + 1]; ++i) {
            actives[row] += value[i] != 0 ? 1 : 0;
            fired[row] += value[i] > fired_above ? 1 : 0;
        }
}

void CpuBackend::sum_parts(Span<const Index> counts, Span<Index> totals) {
    CLT_CHECK(!totals.empty() && counts.size() % totals.size() == 0);
    const Index each = counts.size() / totals.size();
#pragma omp parallel for schedule(static)
    for (Index g = 0; g < totals.size(); ++g) {
        Index sum = 0;
        for (Index i = g * each; i < (g + 1) * each; ++i) sum += raw(counts)[i];
        raw(totals)[g] = sum;
    }
}

void CpuBackend::age(Span<const Index> fired_tokens, Span<Index> silence) {
    CLT_CHECK(fired_tokens.size() == silence.size());
    const Index* fired = raw(fired_tokens);
    Index* silent = raw(silence);
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < silence.size(); ++row)
        silent[row] = fired[row] > 0 ? 0 : silent[row] + 1;
}

}  // namespace clt
