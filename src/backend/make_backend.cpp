#include "backend/cpu/cpu_backend.hpp"
#include "clt/backend/backend.hpp"
#if CLT_CUDA
#include "backend/cuda/make_cuda_backend.hpp"
#endif

namespace clt {

std::unique_ptr<Backend> make_backend(const std::string& kind,
                                      [[maybe_unused]] const Communicator& world,
                                      const std::string& precision) {
    if (kind == "cpu") {
        if (precision != "auto" && precision != "float32")
            user_error("precision = \"{}\": the cpu backend multiplies in float32", precision);
        return std::make_unique<CpuBackend>();
    }
    if (kind != "cuda") user_error("backend = \"{}\": expected \"cpu\" or \"cuda\"", kind);
#if CLT_CUDA
    return make_cuda_backend(world, precision);
#else
    user_error(
        "backend = \"cuda\": this program was built without it; configure with -DCLT_CUDA=ON "
        "(preset "
        "cuda) or use \"cpu\"");
#endif
}

}  // namespace clt
