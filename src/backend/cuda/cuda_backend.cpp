// What the CUDA backend does beside kernels: memory, copies, time and collectives.
#include "backend/cuda/cuda_backend.hpp"

#include <algorithm>
#include <deque>

#include "backend/cuda/collectives.hpp"
#include "clt/backend/cuda_sizes.hpp"
#include "clt/base/log.hpp"

namespace clt {
namespace {

/// Marks are events in the stream of work; their times are read when they have passed.
class EventClock final : public StageClock {
  public:
    explicit EventClock(StreamHandle stream) : stream_(stream) {}

    void start() override { add(no_stage); }

    void mark(const std::string& stage) override {
        const auto known = std::find_if(seconds_.begin(), seconds_.end(),
                                        [&](const auto& entry) { return entry.first == stage; });
        const auto index = static_cast<std::size_t>(known - seconds_.begin());
        if (known == seconds_.end()) seconds_.emplace_back(stage, 0);
        add(index);
        while (marks_.size() > most_marks) settle();  // long past, so this does not wait
    }

    std::vector<std::pair<std::string, double>> take() override {
        while (marks_.size() > 1) settle();
        if (!marks_.empty()) marks_.front().stage = no_stage;
        return std::exchange(seconds_, {});
    }

  private:
    static constexpr auto no_stage = static_cast<std::size_t>(-1);
    static constexpr std::size_t most_marks = 4096;

    struct Mark {
        std::size_t stage;  // in seconds_; the time before it counts for this stage
        cuda::Event event;
    };

    void add(std::size_t stage) {
        if (spare_.empty()) spare_.emplace_back();
        marks_.push_back({stage, std::move(spare_.back())});
        spare_.pop_back();
        cuda::record(marks_.back().event.handle(), stream_);
    }

    /// Counts the time between the two oldest marks.
    void settle() {
        const std::size_t stage = marks_[1].stage;
        if (stage != no_stage)
            seconds_[stage].second +=
                cuda::seconds_between(marks_[0].event.handle(), marks_[1].event.handle());
        spare_.push_back(std::move(marks_.front().event));
        marks_.pop_front();
    }

    StreamHandle stream_;
    std::vector<std::pair<std::string, double>> seconds_;
    std::deque<Mark> marks_;
    std::vector<cuda::Event> spare_;
};

}  // namespace

CudaBackend::CudaBackend(int device, Index ranks_on_device, cuda::Precision precision)
    : device_(device), precision_(precision), ranks_on_device_(ranks_on_device) {}

CudaBackend::~CudaBackend() = default;

std::string CudaBackend::name() const {
    return "cuda";
}

MemoryResource& CudaBackend::memory() {
    return device_.memory();
}

std::optional<Index> CudaBackend::free_bytes() const {
    return cuda::memory_info().free_bytes / ranks_on_device_;
}

std::unique_ptr<Collectives> CudaBackend::collectives(const Communicator& communicator) {
    // NCCL refuses two ranks on one device; one rank alone needs no library.
    if (ranks_on_device_ > 1 || communicator.size() == 1)
        return cuda::make_staged_collectives(communicator, device_);
    return cuda::make_nccl_collectives(communicator, device_);
}

Index CudaBackend::communicator_bytes() const {
    return ranks_on_device_ > 1 ? 0 : nccl_communicator_bytes;
}

std::unique_ptr<StageClock> CudaBackend::stage_clock() {
    return std::make_unique<EventClock>(stream());
}

void CudaBackend::synchronize() {
    device_.synchronize();
}

bool CudaBackend::rounds_encoder() const {
    return precision_ == cuda::Precision::bfloat16;
}

void CudaBackend::upload_bytes(const void* host, void* device, std::size_t bytes) {
    device_.upload(host, device, bytes);
}

void CudaBackend::upload_ahead_bytes(const void* host, void* device, std::size_t bytes) {
    device_.upload_ahead(host, device, bytes);
}

std::shared_ptr<const void> CudaBackend::pin(const void* host, std::size_t bytes) {
    if (bytes == 0) return nullptr;
    try {
        cuda::register_host(host, bytes);
    } catch (const LibraryError& e) {  // a limit of the system: copies are slower, not wrong
        if (!std::exchange(warned_of_pins_, true))
            log_warning("batches are not page-locked, so their uploads are slow: {}", e.what());
        return nullptr;
    }
    return {host, [](const void* pinned) { cuda::unregister_host(pinned); }};
}

void CudaBackend::download_bytes(const void* device, void* host, std::size_t bytes) {
    device_.download(device, host, bytes);
}

void CudaBackend::copy_bytes(const void* from, void* to, std::size_t bytes) {
    if (bytes > 0) cuda::copy_on_device(from, to, bytes, stream());
}

void CudaBackend::zero_bytes(void* device, std::size_t bytes) {
    if (bytes > 0) cuda::zero_device(device, bytes, stream());
}

}  // namespace clt
