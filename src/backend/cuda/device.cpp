#include "backend/cuda/device.hpp"

#include <algorithm>
#include <cstring>
#include <exception>

#include "clt/memory/raw.hpp"

namespace clt::cuda {
namespace {

// An upload up to here goes through page-locked memory, so that the host need not wait for it.
constexpr std::size_t small_upload_bytes = std::size_t{64} << 10;
// Copies below some MB do not reach the bus's full rate.
constexpr std::size_t download_piece_bytes = std::size_t{8} << 20;

}  // namespace

DeviceMemory::~DeviceMemory() {
    return_free_blocks();
}

void* DeviceMemory::do_allocate(std::size_t bytes) {
    // A block an eighth larger than asked for is good enough.
    const auto fits = free_.lower_bound(bytes);
    if (fits != free_.end() && fits->first <= bytes + bytes / 8) {
        void* pointer = fits->second;
        live_[pointer] = {fits->first, true};
        free_.erase(fits);
        return pointer;
    }
    void* pointer = allocate_device(bytes);
    if (pointer == nullptr && !free_.empty()) {
        return_free_blocks();
        pointer = allocate_device(bytes);
    }
    if (pointer != nullptr) live_[pointer] = {bytes, false};
    return pointer;
}

void DeviceMemory::do_deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
    const auto block = live_.find(pointer);
    if (keep_)
        free_.emplace(block->second.bytes, pointer);
    else
        free_device(pointer);
    live_.erase(block);
}

void DeviceMemory::return_free_blocks() noexcept {
    for (const auto& [bytes, pointer] : free_) free_device(pointer);
    free_.clear();
}

std::string DeviceMemory::place() const {
    const MemoryInfo info = memory_info();
    return fmt::format("{} with {:.1f} MB, {:.1f} MB of it free", place_,
                       static_cast<double>(info.total_bytes) / 1e6,
                       static_cast<double>(info.free_bytes) / 1e6);
}

bool DeviceMemory::first_use_of_kept_block(const void* pointer) {
    auto block = live_.upper_bound(pointer);
    return block != live_.begin() && std::exchange((--block)->second.kept, false);
}

std::size_t DeviceMemory::kept_bytes() const {
    std::size_t sum = 0;
    for (const auto& [bytes, pointer] : free_) sum += bytes;
    return sum;
}

std::byte* PinnedBuffer::reserve(std::size_t bytes) {
    if (bytes <= bytes_) return data_;
    free_pinned(std::exchange(data_, nullptr));
    bytes_ = 0;
    data_ = static_cast<std::byte*>(allocate_pinned(bytes));
    if (data_ == nullptr)
        user_error("rank {}: out of page-locked host memory: {:.1f} MB for copies to the device",
                   process_rank(), static_cast<double>(bytes) / 1e6);
    bytes_ = bytes;
    return data_;
}

DeviceLimits Device::select(int index) {
    use_device(index);
    return device_limits();
}

Device::Device(int index) : Device(index, select(index)) {}

Device::Device(int index, DeviceLimits limits)
    : limits_(std::move(limits)),
      memory_(fmt::format("device {} ({})", index, limits_.name), limits_.keeps_freed_blocks),
      blas_(create_blas(work_.handle())) {}

Device::~Device() {
    if (std::uncaught_exceptions() > 0) return;  // see may_wait() in runtime.cpp
    try {
        synchronize();  // nothing queued may outlive what it works on
    } catch (const std::exception&) {
        // A device that failed has been reported by the call that met it.
    }
}

void* Device::reserve(Buffer<std::byte>& buffer, std::size_t bytes) {
    buffer.reserve_discarding(memory_, static_cast<Index>(bytes), Purpose::workspace);
    return raw(buffer.span());
}

void Device::upload(const void* host, void* device, std::size_t bytes) {
    if (bytes == 0) return;
    if (bytes > small_upload_bytes) {
        copy_to_device(host, device, bytes, stream());
        cuda::synchronize(stream());
        return;
    }
    const std::size_t half = std::exchange(up_.turn, 1 - up_.turn);
    std::byte* staging = up_.memory.reserve(2 * small_upload_bytes) + half * small_upload_bytes;
    cuda::synchronize(up_.done[half].handle());
    std::memcpy(staging, host, bytes);
    copy_to_device(staging, device, bytes, stream());
    record(up_.done[half].handle(), stream());
}

void Device::upload_ahead(const void* host, void* device, std::size_t bytes) {
    if (bytes == 0) return;
    if (memory_.first_use_of_kept_block(device)) {
        record(reached_.handle(), stream());
        wait(copies_.handle(), reached_.handle());
    }
    copy_to_device(host, device, bytes, copies_.handle());
    record(copied_.handle(), copies_.handle());
    wait(stream(), copied_.handle());
}

void Device::download(const void* device, void* host, std::size_t bytes) {
    const auto* from = static_cast<const std::byte*>(device);
    auto* to = static_cast<std::byte*>(host);
    const std::size_t piece = std::min(bytes, download_piece_bytes);
    std::byte* staging = down_.memory.reserve(2 * piece);
    // Two pieces under way: while one is copied out, the next is on the bus.
    const auto half_of = [&](std::size_t at) { return at / piece % 2; };
    const auto fetch = [&](std::size_t at) {
        copy_to_host(from + at, staging + half_of(at) * piece, std::min(piece, bytes - at),
                     stream());
        record(down_.done[half_of(at)].handle(), stream());
    };
    if (bytes > 0) fetch(0);
    for (std::size_t at = 0; at < bytes; at += piece) {
        if (at + piece < bytes) fetch(at + piece);
        cuda::synchronize(down_.done[half_of(at)].handle());
        std::memcpy(to + at, staging + half_of(at) * piece, std::min(piece, bytes - at));
    }
}

void Device::synchronize() {
    cuda::synchronize(copies_.handle());
    cuda::synchronize(work_.handle());
}

}  // namespace clt::cuda
