#include "backend/cuda/device_code.hpp"
//
#include "backend/cuda/elements.hpp"
#include "backend/cuda/fill_rows.hpp"

namespace clt::cuda {
namespace {

struct FillRows {
    const float* value;
    DeviceMatrix<float> out;

    template <int width>
    __device__ void run(Index row, Index col) const {
        Pack<width> pack;
        for (int i = 0; i < width; ++i) pack.lane[i] = value[row];
        store(out.data + row * out.stride + col, pack);
    }
};

}  // namespace

void fill_rows(const float* value, Index rows, Index cols, float* out, StreamHandle stream) {
    const DeviceMatrix<float> m{out, rows, cols, cols};
    for_each_element(rows, cols, divides_into_4(m), FillRows{value, m}, stream);
}

}  // namespace clt::cuda
