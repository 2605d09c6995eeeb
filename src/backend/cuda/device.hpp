// One device of one rank: its streams, memory, scratch and cuBLAS handles, and their order of
// death.
#pragma once

#include <memory>

#include "backend/cuda/runtime.hpp"
#include "clt/memory/memory.hpp"

namespace clt::cuda {

/// Device memory from a pool: freed blocks are kept and handed out again, so that a step which
/// frees and allocates does not reach the driver. An allocation that fails returns the pool's free
/// blocks first.
class DeviceMemory;

class Device {
  public:
    explicit Device(int index);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const DeviceLimits& limits() const { return limits_; }
    StreamHandle stream() const { return stream_; }       // all work, in order
    StreamHandle copy_stream() const { return copies_; }  // uploads beside it
    BlasHandles& blas() { return *blas_; }
    MemoryResource& memory();
    void* scratch(std::size_t bytes);
    void* scratch2(std::size_t bytes);
    /// Pinned host memory of one download.
    void* staging(std::size_t bytes);
    /// Later work of stream() waits for the copies queued so far.
    void join_copies();

  private:
    struct Pinned;

    DeviceLimits limits_;
    StreamHandle stream_ = nullptr;
    StreamHandle copies_ = nullptr;
    EventHandle copied_ = nullptr;
    std::unique_ptr<DeviceMemory> memory_;  // outlives the buffers below
    std::shared_ptr<BlasHandles> blas_;
    Buffer<std::byte> scratch_, scratch2_;
    std::unique_ptr<Pinned> staging_;
};

}  // namespace clt::cuda
