#include "backend/cpu/cpu_backend.hpp"

#include <cstring>

#include "clt/base/stopwatch.hpp"
#include "clt/memory/raw.hpp"

namespace clt {
namespace {

class WallClock final : public StageClock {
  public:
    void start() override { watch_.lap(); }
    void mark(const std::string& stage) override {
        const double seconds = watch_.lap();
        for (auto& [known, total] : seconds_)
            if (known == stage) {
                total += seconds;
                return;
            }
        seconds_.emplace_back(stage, seconds);
    }
    std::vector<std::pair<std::string, double>> take() override {
        return std::exchange(seconds_, {});
    }

  private:
    Stopwatch watch_;
    std::vector<std::pair<std::string, double>> seconds_;
};

}  // namespace

std::string CpuBackend::name() const {
    return "cpu";
}

MemoryResource& CpuBackend::memory() {
    return memory_;
}

std::unique_ptr<Collectives> CpuBackend::collectives(const Communicator& communicator) {
    return make_mpi_collectives(communicator);
}

std::unique_ptr<StageClock> CpuBackend::stage_clock() {
    return std::make_unique<WallClock>();
}

void CpuBackend::synchronize() {}  // every call is done when it returns

void CpuBackend::upload_bytes(const void* host, void* device, std::size_t bytes) {
    copy_bytes(host, device, bytes);
}

void CpuBackend::upload_ahead_bytes(const void* host, void* device, std::size_t bytes) {
    copy_bytes(host, device, bytes);
}

std::shared_ptr<const void> CpuBackend::pin(const void* /*host*/, std::size_t /*bytes*/) {
    return nullptr;  // every copy is a memcpy
}

void CpuBackend::download_bytes(const void* device, void* host, std::size_t bytes) {
    copy_bytes(device, host, bytes);
}

void CpuBackend::copy_bytes(const void* from, void* to, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);  // empty spans may be null
}

void CpuBackend::zero_bytes(void* device, std::size_t bytes) {
    if (bytes > 0) std::memset(device, 0, bytes);
}

double* CpuBackend::double_scratch(Index n) {
    double_scratch_.reserve_discarding(memory_, n, Purpose::workspace);
    return raw(double_scratch_.span());
}

Index* CpuBackend::index_scratch(Index n) {
    index_scratch_.reserve_discarding(memory_, n, Purpose::workspace);
    return raw(index_scratch_.span());
}

}  // namespace clt
