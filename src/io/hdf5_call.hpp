// How io/ calls the HDF5 C library: its own error printing is off, a failure's stack becomes one
// line of words, and all ranks of a collective call fail together.
#pragma once

#include <hdf5.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "clt/comm/communicator.hpp"
#include "clt/io/hdf5.hpp"

namespace clt::h5 {

/// Once a process: HDF5 prints nothing by itself. Called by whatever opens or makes a file.
void quiet();

/// The error stack of the last failed call as "outermost: ...: innermost"; clears it.
std::string take_words();

/// "NAME: cannot be DOING: words", as UserError where the words tell of a full disk or a missing
/// right (the user can help) or `users_fault`, else as LibraryError.
[[noreturn]] void fail(const std::string& name, const char* doing, bool users_fault);

/// Throws UserError with the cure when the words are those for a version of the file format that
/// this HDF5 does not know; else does nothing. name: of the file or array.
void refuse_newer_format(const std::string& name, const std::string& words);

/// HDF5 tells of failure by a negative value.
template <class T>
T check(T result, const std::string& name, const char* doing, bool users_fault = false) {
    if (result < 0) fail(name, doing, users_fault);
    return result;
}

/// Empties and removes a file that is given up, and sets space for its metadata aside: closing it
/// flushes them, and on a disk without room HDF5's ranks part ways in that and wait for each other
/// for ever (HDF5 1.10, Open MPI 4.1, tried).
void give_up(const std::string& path) noexcept;

/// Runs `work` and, when there is a communicator, lets all ranks fail when one does.
template <class Work>
void together(const Communicator* communicator, Work&& work) {
    if (communicator == nullptr)
        work();
    else
        communicator->together(std::forward<Work>(work));
}

/// Space for HDF5's own metadata, set aside as long as a file is written.
inline constexpr Index metadata_bytes = Index{1} << 20;

/// `work` writes to the file; when it fails, all ranks give the file up and throw.
template <class Work>
void together_writing(const Communicator* communicator, const std::string& path,
                      const std::shared_ptr<H5Handle>& file, Work&& work) {
    try {
        together(communicator, std::forward<Work>(work));
    } catch (...) {
        if (communicator == nullptr || communicator->rank() == 0) give_up(path);
        // Several ranks close it here, where they are together and there is room: MPI-IO does not
        // survive a file that is still open in MPI_Finalize. One process has no need to, and HDF5
        // does not survive a close that fails.
        if (communicator != nullptr && communicator->size() > 1) {
            communicator->barrier();
            if (file != nullptr) const H5Handle closed_now = std::move(*file);
        }
        throw;
    }
}

inline H5Handle own(hid_t id, int (*close)(hid_t), H5Unwind unwind = H5Unwind::close) {
    return {id, close, unwind};
}

/// A UTF-8 string attribute of an object; one that is there is replaced. owner: for messages.
void write_text(hid_t object, const std::string& owner, const std::string& name,
                const std::string& text);
std::optional<std::string> read_text(hid_t object, const std::string& owner,
                                     const std::string& name);

/// The file type of an element; ids live as long as the process.
hid_t file_type(H5Type type);

}  // namespace clt::h5
