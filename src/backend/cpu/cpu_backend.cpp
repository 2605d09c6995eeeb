#include "backend/cpu/cpu_backend.hpp"

#include <cstring>

#include "clt/memory/raw.hpp"

namespace clt {

std::string CpuBackend::name() const {
    return "cpu";
}

MemoryResource& CpuBackend::memory() {
    return memory_;
}

std::unique_ptr<Collectives> CpuBackend::collectives(const Communicator& communicator) {
    return make_mpi_collectives(communicator);
}

void CpuBackend::synchronize() {}  // every call is done when it returns

void CpuBackend::upload_bytes(const void* host, void* device, std::size_t bytes) {
    copy_bytes(host, device, bytes);
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
