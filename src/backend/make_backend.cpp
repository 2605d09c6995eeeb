#include "backend/cpu/cpu_backend.hpp"
#include "clt/backend/backend.hpp"

namespace clt {

std::unique_ptr<Backend> make_backend(const std::string& kind) {
    if (kind == "cpu") return std::make_unique<CpuBackend>();
    if (kind == "cuda")
        user_error(
            "backend = \"cuda\": this program was built without it; configure with "
            "-DCLT_CUDA=ON or use \"cpu\"");
    user_error("backend = \"{}\": expected \"cpu\" or \"cuda\"", kind);
}

}  // namespace clt
