// The first include of every .cu: CUDA's own headers under nvcc, or the emulator of
// tests/support/cuda_on_cpu, which runs the same source on the CPU. Kernels are launched by
// CLT_LAUNCH and take shared memory by CLT_SHARED, as the emulator has no <<<>>> and no __shared__.
#pragma once

/// A cudaStream_t, spelt without CUDA's headers.
using StreamHandle = struct CUstream_st*;

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace clt::cuda {

/// Throws LibraryError that names the kernel when the launch before it was refused.
void check_launch(const char* kernel);

/// A grid with a zero extent launches nothing; CUDA itself would refuse it.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            StreamHandle stream, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    kernel<<<grid, block, 0, stream>>>(arguments...);
    check_launch(name);
}

}  // namespace clt::cuda

#define CLT_SHARED(type, name, count) __shared__ type name[count]

#elif defined(CLT_CUDA_ON_CPU)

#include "support/cuda_on_cpu/emulator.hpp"

namespace clt::cuda {
using emu::launch;
}

#else
#error "device_code.hpp is for nvcc and for tests/support/cuda_on_cpu"
#endif

/// CLT_LAUNCH(kernel, grid, block, stream, arguments...): the one way to launch.
/// A kernel with commas in its name stands in parentheses: CLT_LAUNCH((fill<float, 4>), ...).
#define CLT_LAUNCH(kernel, grid, block, stream, ...) \
    ::clt::cuda::launch(#kernel, kernel, grid, block, stream __VA_OPT__(, ) __VA_ARGS__)
