#include "clt/base/version.hpp"

namespace clt {

const char* version() {
    return CLT_VERSION;
}
const char* revision() {
    return CLT_REVISION;
}

}  // namespace clt
