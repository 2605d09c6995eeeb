// What tests set on the emulated device.
#pragma once

#include <cstddef>

namespace clt::test {

/// Whether devices made from now on keep freed blocks. Off: then the emulator sees every use of a
/// freed buffer.
void emulate_block_pool(bool keep);
/// Whether there is a device.
void emulate_device(bool present);
/// How often the host has waited for a stream or an event so far.
int waits();
/// Events that exist.
int live_events();
/// Whether [from, from + bytes) of host memory lies in one registered range.
bool is_page_locked(const void* from, std::size_t bytes);
/// Host memory registered now, by range.
int page_locked_ranges();

}  // namespace clt::test
