// The data plane: bulk collectives on backend memory, one object a communicator. The MPI version
// works on host memory; a GPU backend brings NCCL and a host-staged one behind the same page.
#pragma once

#include <memory>
#include <span>

#include "clt/comm/communicator.hpp"
#include "clt/memory/memory.hpp"

namespace clt {

class Collectives {
  public:
    virtual ~Collectives() = default;
    virtual int rank() const = 0;
    virtual int size() const = 0;

    /// In place. Collective.
    virtual void all_reduce_sum(Span<float> values) = 0;
    virtual void all_reduce_sum(Span<double> values) = 0;
    virtual void all_reduce_sum(Span<Index> values) = 0;
    /// `in` holds the blocks of all ranks, counts[r] elements for rank r; `out` gets this rank's
    /// block summed over all ranks. Collective.
    virtual void reduce_scatter_sum(Span<const float> in, Span<float> out,
                                    std::span<const Index> counts) = 0;

    /// `out` gets every rank's `in`, in rank order; counts[r] is the size of rank r's. `in` may be
    /// its own place in `out`. Collective.
    template <class T>
    void all_gather(Span<const T> in, Span<T> out, std::span<const Index> counts);

  private:
    virtual void all_gather_bytes(const void* in, void* out,
                                  std::span<const Index> byte_counts) = 0;
};

std::unique_ptr<Collectives> make_mpi_collectives(const Communicator& communicator);

template <class T>
void Collectives::all_gather(Span<const T> in, Span<T> out, std::span<const Index> counts) {
    std::vector<Index> byte_counts(counts.begin(), counts.end());
    Index total = 0;
    for (Index& count : byte_counts) {
        total += count;
        count *= static_cast<Index>(sizeof(T));
    }
    CLT_CHECK(static_cast<int>(counts.size()) == size() && total <= out.size());
    CLT_CHECK(in.size() == counts[static_cast<std::size_t>(rank())]);
    all_gather_bytes(RawAccess::pointer(in), RawAccess::pointer(out), byte_counts);
}

}  // namespace clt
