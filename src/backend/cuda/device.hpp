// One device of one rank: its streams, memory, scratch and cuBLAS handles, and their order of
// death.
#pragma once

#include <array>
#include <map>
#include <memory>

#include "backend/cuda/runtime.hpp"
#include "clt/memory/memory.hpp"

namespace clt::cuda {

/// Device memory from a pool: freed blocks are kept and handed out again, so that a step which
/// frees and allocates does not reach the driver. Whoever gets a block may queue work on stream()
/// at once: it runs behind the work of the block's last owner. An allocation that fails returns
/// the pool's free blocks first.
class DeviceMemory final : public MemoryResource {
  public:
    /// place: "device 0 (NVIDIA H100)", for messages. keep: whether freed blocks are kept.
    DeviceMemory(std::string place, bool keep) : place_(std::move(place)), keep_(keep) {}
    ~DeviceMemory() override;

    /// Whether the buffer around `pointer` came from the pool and nobody has asked before: queued
    /// work of its last owner may then still use it, which matters outside of stream() only.
    bool first_use_of_kept_block(const void* pointer);
    void return_free_blocks() noexcept override;
    /// Of the free blocks the pool holds.
    std::size_t kept_bytes() const;

  private:
    struct Block {
        std::size_t bytes;  // of the block; a buffer may be smaller
        bool kept;          // it came from the pool, and nobody has asked yet
    };

    void* do_allocate(std::size_t bytes) override;
    void do_deallocate(void* pointer, std::size_t bytes) noexcept override;
    std::string place() const override;

    std::string place_;
    bool keep_;
    std::map<const void*, Block> live_;
    std::multimap<std::size_t, void*> free_;  // by size
};

/// Page-locked host memory that grows.
class PinnedBuffer {
  public:
    PinnedBuffer() = default;
    PinnedBuffer(const PinnedBuffer&) = delete;
    PinnedBuffer& operator=(const PinnedBuffer&) = delete;
    ~PinnedBuffer() { free_pinned(data_); }

    /// At least this many bytes; the content is lost when it has to grow, and no copy may be under
    /// way then. Throws UserError when there is none.
    std::byte* reserve(std::size_t bytes);

  private:
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
};

class Event {
  public:
    Event() : handle_(create_event()) {}
    Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Event& operator=(Event&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Event() {
        if (handle_ != nullptr) destroy_event(handle_);
    }
    EventHandle handle() const { return handle_; }

  private:
    EventHandle handle_;
};

class Stream {
  public:
    Stream() : handle_(create_stream()) {}
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { destroy_stream(handle_); }
    StreamHandle handle() const { return handle_; }

  private:
    StreamHandle handle_;
};

class Device {
  public:
    /// index: on this host. Throws LibraryError.
    explicit Device(int index);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const DeviceLimits& limits() const { return limits_; }
    StreamHandle stream() const { return work_.handle(); }  // all work, in order
    BlasHandles& blas() { return *blas_; }
    MemoryResource& memory() { return memory_; }
    /// Scratch of one call: what is queued later may overwrite it.
    void* scratch(std::size_t bytes) { return reserve(scratch_, bytes); }
    /// A second one, for a call that needs two.
    void* scratch2(std::size_t bytes) { return reserve(scratch2_, bytes); }

    /// Behind the work queued so far; `host` may be reused at once.
    void upload(const void* host, void* device, std::size_t bytes);
    /// Beside the work queued so far; later work sees the copy. `host` stays as it is until then.
    void upload_ahead(const void* host, void* device, std::size_t bytes);
    /// Waits for the work queued so far.
    void download(const void* device, void* host, std::size_t bytes);
    void synchronize();

  private:
    /// Two halves of page-locked memory that copies take turns in; each half's event tells when its
    /// last copy is done.
    struct Staging {
        PinnedBuffer memory;
        std::array<Event, 2> done;
        std::size_t turn = 0;
    };

    Device(int index, DeviceLimits limits);
    static DeviceLimits select(int index);
    void* reserve(Buffer<std::byte>& buffer, std::size_t bytes);

    DeviceLimits limits_;
    DeviceMemory memory_;  // outlives the buffers below
    Buffer<std::byte> scratch_, scratch2_;
    Stream work_, copies_;
    Event reached_, copied_;
    std::shared_ptr<BlasHandles> blas_;
    Staging up_, down_;
};

}  // namespace clt::cuda
