// What was built: goes into checkpoints, resolved jobs and `clt --version`.
#pragma once

namespace clt {

const char* version();   // "0.1.0"
const char* revision();  // git describe, or "unknown"

}  // namespace clt
