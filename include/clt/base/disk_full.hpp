// A kind of UserError that a run may survive.
#pragma once

#include <string>

#include "clt/base/error.hpp"

namespace clt {

/// What was to be written does not fit the disk, or a quota. It may fit later.
class DiskFullError : public UserError {
  public:
    using UserError::UserError;
};

}  // namespace clt
