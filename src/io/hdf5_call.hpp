// How io/ calls the HDF5 C library: its own error printing is off, a failure's stack becomes one
// line of words, and all ranks of a collective call fail together.
#pragma once

#include <hdf5.h>

#include <string>

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

/// HDF5 tells of failure by a negative value.
template <class T>
T check(T result, const std::string& name, const char* doing, bool users_fault = false) {
    if (result < 0) fail(name, doing, users_fault);
    return result;
}

/// Runs `work` and, when there is a communicator, lets all ranks fail when one does.
template <class Work>
void together(const Communicator* communicator, Work&& work) {
    if (communicator == nullptr)
        work();
    else
        communicator->together(std::forward<Work>(work));
}

inline H5Handle own(hid_t id, int (*close)(hid_t)) {
    return {id, close};
}

/// The file type of an element; ids live as long as the process.
hid_t file_type(H5Type type);

}  // namespace clt::h5
