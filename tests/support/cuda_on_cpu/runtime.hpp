// What tests set on the emulated device.
#pragma once

namespace clt::test {

/// Whether devices made from now on keep freed blocks. Off: then the emulator sees every use of a
/// freed buffer.
void emulate_block_pool(bool keep);
/// Whether there is a device.
void emulate_device(bool present);
/// Downloads, uploads and copies that the runtime was asked for so far.
struct CopyCounts {
    int up = 0, down = 0, waits = 0;
};
CopyCounts copy_counts();

}  // namespace clt::test
