// How often features are active.
#include "backend/cuda/counters.hpp"

#include "backend/cuda/cuda_backend.hpp"
#include "clt/memory/raw.hpp"

namespace clt {

void CudaBackend::count(const ActiveSet& active, Span<Index> active_tokens,
                        Span<Index> fired_tokens) {
    CLT_CHECK(active_tokens.size() == active.rows && fired_tokens.size() == active.rows);
    cuda::count(raw(active.row_start.span()), raw(active.value.span()), active.rows,
                raw(active_tokens), raw(fired_tokens), stream());
}

void CudaBackend::sum_parts(Span<const Index> counts, Span<Index> totals) {
    CLT_CHECK(!totals.empty() && counts.size() % totals.size() == 0);
    cuda::sum_parts(raw(counts), totals.size(), counts.size() / totals.size(), raw(totals),
                    stream());
}

void CudaBackend::age(Span<const Index> fired_tokens, Span<Index> silence) {
    CLT_CHECK(fired_tokens.size() == silence.size());
    cuda::age(raw(fired_tokens), silence.size(), raw(silence), stream());
}

}  // namespace clt
