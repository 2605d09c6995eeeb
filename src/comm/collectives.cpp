#include "clt/comm/collectives.hpp"

#include <algorithm>
#include <cstring>

#include "clt/base/progress.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

// Elements a call: below 2^31 in count and, for the reductions, small enough to stay in MPI's
// pipelined algorithms.
constexpr Index max_count = Index{1} << 28;

class MpiCollectives final : public Collectives {
  public:
    explicit MpiCollectives(const Communicator& communicator)
        : communicator_(communicator.duplicate()) {}

    int rank() const override { return communicator_.rank(); }
    int size() const override { return communicator_.size(); }

    void all_reduce_sum(Span<float> values) override { sum(values); }
    void all_reduce_sum(Span<double> values) override { sum(values); }
    void all_reduce_sum(Span<Index> values) override { sum(values); }

    void reduce_scatter_sum(Span<const float> in, Span<float> out,
                            std::span<const Index> counts) override {
        CLT_CHECK(static_cast<int>(counts.size()) == size());
        const float* from = raw(in);
        if (size() == 1) {
            std::memmove(raw(out), from, static_cast<std::size_t>(counts[0]) * sizeof(float));
            return;
        }
        Index total = 0;
        for (const Index count : counts) total += count;
        CLT_CHECK(total <= in.size() && counts[static_cast<std::size_t>(rank())] <= out.size());
        if (total < max_count) {
            std::vector<int> int_counts(counts.begin(), counts.end());
            const WaitsIn wait("MPI_Reduce_scatter");
            check_mpi(MPI_Reduce_scatter(from, raw(out), int_counts.data(), MPI_FLOAT, MPI_SUM,
                                         communicator_.handle()),
                      "MPI_Reduce_scatter");
            return;
        }
        const WaitsIn wait("MPI_Reduce");
        Index start = 0;  // too large for one call: a reduction to each rank, in pieces
        for (int r = 0; r < size(); start += counts[static_cast<std::size_t>(r)], ++r)
            for (Index at = 0; at < counts[static_cast<std::size_t>(r)]; at += max_count)
                check_mpi(MPI_Reduce(from + start + at, r == rank() ? raw(out) + at : nullptr,
                                     static_cast<int>(std::min(
                                         max_count, counts[static_cast<std::size_t>(r)] - at)),
                                     MPI_FLOAT, MPI_SUM, r, communicator_.handle()),
                          "MPI_Reduce");
    }

  private:
    template <class T>
    void sum(Span<T> values) {
        if (size() == 1) return;
        communicator_.all_reduce_sum(
            std::span<T>(raw(values), static_cast<std::size_t>(values.size())));
    }

    void all_gather_bytes(const void* in, void* out, std::span<const Index> byte_counts) override {
        auto* to = static_cast<std::byte*>(out);
        Index before = 0;
        Index total = 0;
        for (int r = 0; r < size(); ++r) {
            if (r < rank()) before += byte_counts[static_cast<std::size_t>(r)];
            total += byte_counts[static_cast<std::size_t>(r)];
        }
        const Index own = byte_counts[static_cast<std::size_t>(rank())];
        if (own > 0 && in != to + before)
            std::memmove(to + before, in, static_cast<std::size_t>(own));
        if (size() == 1) return;
        if (total < max_count) {
            std::vector<int> counts(byte_counts.begin(), byte_counts.end());
            std::vector<int> starts(counts.size(), 0);
            for (std::size_t r = 1; r < counts.size(); ++r)
                starts[r] = starts[r - 1] + counts[r - 1];
            const WaitsIn wait("MPI_Allgatherv");
            check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_BYTE, to, counts.data(), starts.data(),
                                     MPI_BYTE, communicator_.handle()),
                      "MPI_Allgatherv");
            return;
        }
        const WaitsIn wait("MPI_Bcast");
        Index start = 0;
        for (int r = 0; r < size(); start += byte_counts[static_cast<std::size_t>(r)], ++r)
            for (Index at = 0; at < byte_counts[static_cast<std::size_t>(r)]; at += max_count)
                check_mpi(MPI_Bcast(to + start + at,
                                    static_cast<int>(std::min(
                                        max_count, byte_counts[static_cast<std::size_t>(r)] - at)),
                                    MPI_BYTE, r, communicator_.handle()),
                          "MPI_Bcast");
    }

    Communicator communicator_;
};

}  // namespace

std::unique_ptr<Collectives> make_mpi_collectives(const Communicator& communicator) {
    return std::make_unique<MpiCollectives>(communicator);
}

}  // namespace clt
