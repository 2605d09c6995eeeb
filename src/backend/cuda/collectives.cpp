#include "backend/cuda/collectives.hpp"

#include <numeric>

#include "clt/memory/raw.hpp"

namespace clt::cuda {
namespace {

Index sum_of(std::span<const Index> counts) {
    return std::accumulate(counts.begin(), counts.end(), Index{0});
}

template <class T>
constexpr NumberType number_type() {
    if constexpr (std::is_same_v<T, float>)
        return NumberType::float32;
    else if constexpr (std::is_same_v<T, double>)
        return NumberType::float64;
    else {
        static_assert(std::is_same_v<T, Index>);
        return NumberType::int64;
    }
}

/// Queued in the device's stream of work, like kernels.
class NcclCollectives final : public Collectives {
  public:
    NcclCollectives(const Communicator& communicator, Device& device)
        : device_(&device), rank_(communicator.rank()), size_(communicator.size()) {
        NcclId id;
        communicator.together([&] {
            if (rank_ == 0) id = make_nccl_id();
        });
        nccl_ = create_nccl(communicator.broadcast(id), size_, rank_);
    }

    int rank() const override { return rank_; }
    int size() const override { return size_; }

    void all_reduce_sum(Span<float> values) override { sum(values); }
    void all_reduce_sum(Span<double> values) override { sum(values); }
    void all_reduce_sum(Span<Index> values) override { sum(values); }

    void reduce_scatter_sum(Span<const float> in, Span<float> out,
                            std::span<const Index> counts) override {
        CLT_CHECK(static_cast<int>(counts.size()) == size_ && sum_of(counts) <= in.size());
        CLT_CHECK(counts[static_cast<std::size_t>(rank_)] <= out.size());
        nccl_reduce_scatter_sum(*nccl_, raw(in), raw(out), counts.data(), device_->stream());
    }

  private:
    template <class T>
    void sum(Span<T> values) {
        if (values.empty()) return;
        nccl_all_reduce_sum(*nccl_, raw(values), values.size(), number_type<T>(),
                            device_->stream());
    }

    void all_gather_bytes(const void* in, void* out, std::span<const Index> byte_counts) override {
        nccl_all_gather(*nccl_, in, out, byte_counts.data(), device_->stream());
    }

    Device* device_;
    int rank_;
    int size_;
    std::shared_ptr<NcclCommunicator> nccl_;
};

/// Down into page-locked memory, MPI, up again. Waits in every call.
class StagedCollectives final : public Collectives {
  public:
    StagedCollectives(const Communicator& communicator, Device& device)
        : device_(&device), mpi_(make_mpi_collectives(communicator)) {}

    int rank() const override { return mpi_->rank(); }
    int size() const override { return mpi_->size(); }

    void all_reduce_sum(Span<float> values) override { sum(values); }
    void all_reduce_sum(Span<double> values) override { sum(values); }
    void all_reduce_sum(Span<Index> values) override { sum(values); }

    void reduce_scatter_sum(Span<const float> in, Span<float> out,
                            std::span<const Index> counts) override {
        const Index total = sum_of(counts);
        CLT_CHECK(static_cast<int>(counts.size()) == size() && total <= in.size());
        const Index own = counts[static_cast<std::size_t>(rank())];
        CLT_CHECK(own <= out.size());
        if (size() == 1) {
            copy(raw(in), raw(out), own);
            return;
        }
        const std::span<float> all = down(raw(in), total);
        const std::span<float> block = host<float>(result_, own);
        mpi_->reduce_scatter_sum(as_span(std::span<const float>(all)), as_span(block), counts);
        up(block.data(), raw(out), own);
    }

  private:
    template <class T>
    static std::span<T> host(PinnedBuffer& buffer, Index n) {
        const auto count = static_cast<std::size_t>(n);
        return {reinterpret_cast<T*>(buffer.reserve(count * sizeof(T))), count};
    }

    template <class T>
    std::span<T> down(const T* device, Index n) {
        const std::span<T> values = host<T>(operand_, n);
        fetch(device, values.data(), n);
        return values;
    }
    template <class T>
    void fetch(const T* device, T* host, Index n) {
        if (n == 0) return;
        copy_to_host(device, host, static_cast<std::size_t>(n) * sizeof(T), device_->stream());
        synchronize(device_->stream());
    }
    template <class T>
    void up(const T* host, T* device, Index n) {
        if (n == 0) return;
        copy_to_device(host, device, static_cast<std::size_t>(n) * sizeof(T), device_->stream());
        synchronize(device_->stream());
    }
    template <class T>
    void copy(const T* from, T* to, Index n) {
        if (n == 0 || from == to) return;
        copy_on_device(from, to, static_cast<std::size_t>(n) * sizeof(T), device_->stream());
    }

    template <class T>
    void sum(Span<T> values) {
        if (size() == 1) return;
        const std::span<T> all = down<T>(raw(values), values.size());
        mpi_->all_reduce_sum(as_span(all));
        up(all.data(), raw(values), values.size());
    }

    void all_gather_bytes(const void* in, void* out, std::span<const Index> byte_counts) override {
        const auto* from = static_cast<const std::byte*>(in);
        auto* to = static_cast<std::byte*>(out);
        const auto me = static_cast<std::size_t>(rank());
        const Index before = sum_of(byte_counts.first(me));
        const Index own = byte_counts[me];
        if (size() == 1) {
            copy(from, to, own);
            return;
        }
        const Index total = sum_of(byte_counts);
        const std::span<std::byte> all = host<std::byte>(operand_, total);
        fetch(from, all.data() + before, own);
        const Span<std::byte> span = as_span(all);
        mpi_->all_gather(Span<const std::byte>(span.subspan(before, own)), span, byte_counts);
        up(all.data(), to, total);
    }

    Device* device_;
    std::unique_ptr<Collectives> mpi_;
    PinnedBuffer operand_, result_;
};

}  // namespace

std::unique_ptr<Collectives> make_nccl_collectives(const Communicator& communicator,
                                                   Device& device) {
    return std::make_unique<NcclCollectives>(communicator, device);
}

std::unique_ptr<Collectives> make_staged_collectives(const Communicator& communicator,
                                                     Device& device) {
    return std::make_unique<StagedCollectives>(communicator, device);
}

}  // namespace clt::cuda
