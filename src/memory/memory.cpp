#include "clt/memory/memory.hpp"

#include <sys/mman.h>

#include <cstdlib>

namespace clt {
namespace {
constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
}  // namespace

const char* name_of(Purpose purpose) {
    switch (purpose) {
        case Purpose::parameters:
            return "parameters";
        case Purpose::moments:
            return "optimiser moments";
        case Purpose::gradients:
            return "gradients";
        case Purpose::batch:
            return "batches";
        case Purpose::candidates:
            return "candidates";
        case Purpose::active_set:
            return "active features";
        case Purpose::workspace:
            return "workspace";
        case Purpose::language_model:
            return "language model";
    }
    return "?";
}

void* MemoryResource::allocate(std::size_t bytes, Purpose purpose) {
    if (bytes == 0) return nullptr;
    void* pointer = do_allocate(bytes);
    if (pointer == nullptr) {
        std::string used;
        for (int p = 0; p < purpose_count; ++p)
            if (in_use_[static_cast<std::size_t>(p)] > 0)
                used += fmt::format(
                    "{}{} {:.1f} MB", used.empty() ? "" : ", ", name_of(static_cast<Purpose>(p)),
                    static_cast<double>(in_use_[static_cast<std::size_t>(p)]) / 1e6);
        user_error(
            "rank {}: out of memory on {}: {:.1f} MB for {} (in use: {}); use more ranks, fewer "
            "features (model.features) or a smaller batch (data.batch_tokens)",
            process_rank(), place(), static_cast<double>(bytes) / 1e6, name_of(purpose),
            used.empty() ? "nothing" : used);
    }
    in_use_[static_cast<std::size_t>(purpose)] += bytes;
    total_ += bytes;
    if (total_ > peak_) peak_ = total_;
    return pointer;
}

void MemoryResource::deallocate(void* pointer, std::size_t bytes, Purpose purpose) noexcept {
    if (pointer == nullptr) return;
    do_deallocate(pointer, bytes);
    in_use_[static_cast<std::size_t>(purpose)] -= bytes;
    total_ -= bytes;
}

void* HostMemory::do_allocate(std::size_t bytes) {
    const std::size_t alignment = bytes >= huge_page_bytes ? huge_page_bytes : 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* pointer = std::aligned_alloc(alignment, rounded);
    // Rows of several KiB are read in random order: 4 KiB pages would cost a TLB miss each.
    if (pointer != nullptr && alignment == huge_page_bytes)
        madvise(pointer, rounded, MADV_HUGEPAGE);
    return pointer;
}

void HostMemory::do_deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
    std::free(pointer);
}

std::string HostMemory::place() const {
    return "the host";
}

}  // namespace clt
