// One job a folder: `FOLDER/.lock` names the process that writes there. A second job refuses before
// it touches a file. The lock of a process that is gone is taken over: one of this host that does
// not run any more, a SLURM step that has ended, or one that gave no sign of life for long.
#pragma once

#include <memory>
#include <string>

#include "clt/comm/communicator.hpp"

namespace clt {

/// Held while it lives, by rank 0; released at every way out, save a kill.
class FolderLock {
  public:
    /// The folder exists. Collective. Throws UserError that names the holder's host, process and
    /// job when the folder is in use.
    FolderLock(const std::string& folder, const Communicator& all);
    FolderLock(FolderLock&&) noexcept;
    FolderLock(const FolderLock&) = delete;
    ~FolderLock();

  private:
    class Held;
    std::unique_ptr<Held> held_;  // rank 0
};

}  // namespace clt
