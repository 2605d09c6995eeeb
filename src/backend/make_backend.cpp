#include "backend/cpu/cpu_backend.hpp"
#include "clt/backend/backend.hpp"

namespace clt {

std::unique_ptr<Backend> make_backend(const std::string& kind) {
    if (kind == "cpu") return std::make_unique<CpuBackend>();
    user_error("backend = \"{}\": expected \"cpu\", the only one this version has", kind);
}

}  // namespace clt
