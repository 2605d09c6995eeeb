// The control plane: an owned MPI communicator for small values in host memory. Bulk data goes
// through Collectives (comm/collectives.hpp). Every call is collective over the communicator and
// throws LibraryError unless said otherwise.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <exception>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "clt/base/error.hpp"
#include "clt/base/types.hpp"

namespace clt {

/// Throws LibraryError with MPI's own words unless code is MPI_SUCCESS.
void check_mpi(int code, const char* call);

/// Initialises MPI (MPI_THREAD_MULTIPLE) and finalises it. One a process, made first in main,
/// destroyed last. While an exception unwinds it does not finalise: other ranks may wait in a
/// collective, and MPI_Finalize would then hang; main calls abort() instead.
class MpiSession {
  public:
    MpiSession(int& argc, char**& argv);
    MpiSession(const MpiSession&) = delete;
    MpiSession& operator=(const MpiSession&) = delete;
    ~MpiSession();

    /// Ends the whole job with this exit code. Not collective.
    [[noreturn]] static void abort(int exit_code);

  private:
    int exceptions_at_start_ = std::uncaught_exceptions();
};

/// Move-only owner of a communicator. Must die before MpiSession.
class Communicator {
  public:
    /// A duplicate of MPI_COMM_WORLD: our traffic never meets a library's.
    static Communicator world();

    Communicator() = default;
    Communicator(Communicator&& other) noexcept;
    Communicator& operator=(Communicator&& other) noexcept;
    ~Communicator();

    int rank() const { return rank_; }
    int size() const { return size_; }
    MPI_Comm handle() const { return handle_; }

    Communicator duplicate() const;
    /// Ranks of equal color share a new communicator, ordered by key.
    Communicator split(int color, int key) const;
    /// The ranks that share this host's memory.
    Communicator split_by_host() const;

    void barrier() const;
    /// Waits until every rank has called this, at most timeout_s: true when they all did. False:
    /// some are elsewhere, and this communicator cannot be used any more. For main, which tells by
    /// it whether all ranks failed together.
    bool all_arrive_within(double timeout_s) const;

    /// True when ok holds on every rank.
    bool agree(bool ok) const;
    /// A signal has come to some rank: the same answer on all (base/stop.hpp).
    bool stop_requested_anywhere() const;
    /// Throws Stopped on every rank when it has. For a phase with nothing to save.
    void stop_point(const std::string& doing) const;
    /// When any rank passes an exception, every rank throws: ranks with an own exception their own
    /// kind, all with the message of the lowest failing rank. Call it after work that may fail on
    /// some ranks only and before the next collective. Example: `auto failure = caught([&] {
    /// open(); }); comm.throw_together(failure);`
    void throw_together(const std::exception_ptr& failure) const;
    /// Runs `work` (no collectives inside) on every rank, then throw_together.
    template <class Work>
    void together(Work&& work) const {
        std::exception_ptr failure;
        try {
            work();
        } catch (...) {
            failure = std::current_exception();
        }
        throw_together(failure);
    }

    std::string broadcast(const std::string& text, int root = 0) const;
    template <class T>
    void broadcast(std::span<T> values, int root = 0) const {
        static_assert(std::is_trivially_copyable_v<T>);
        broadcast_bytes(std::as_writable_bytes(values), root);
    }
    template <class T>
    T broadcast(T value, int root = 0) const requires std::is_trivially_copyable_v<T> {
        broadcast(std::span<T>(&value, 1), root);
        return value;
    }

    /// In place, element by element. T: std::int64_t, std::uint64_t, std::int32_t, std::uint32_t,
    /// float or double.
    template <class T>
    void all_reduce_sum(std::span<T> values) const {
        reduce_in_place(values.data(), static_cast<Index>(values.size()), type_of<T>(), MPI_SUM);
    }
    template <class T>
    T all_reduce_sum(T value) const {
        reduce_in_place(&value, 1, type_of<T>(), MPI_SUM);
        return value;
    }
    template <class T>
    void all_reduce_max(std::span<T> values) const {
        reduce_in_place(values.data(), static_cast<Index>(values.size()), type_of<T>(), MPI_MAX);
    }
    template <class T>
    T all_reduce_max(T value) const {
        reduce_in_place(&value, 1, type_of<T>(), MPI_MAX);
        return value;
    }
    template <class T>
    T all_reduce_min(T value) const {
        reduce_in_place(&value, 1, type_of<T>(), MPI_MIN);
        return value;
    }

    /// Every rank's value, by rank.
    template <class T>
    std::vector<T> all_gather(const T& value) const {
        static_assert(std::is_trivially_copyable_v<T>);
        std::vector<T> all(static_cast<std::size_t>(size_));
        gather_bytes(&value, sizeof(T), all.data());
        return all;
    }

    /// Sum of `value` over lower ranks (0 on rank 0).
    Index exclusive_sum(Index value) const;

    /// Variable exchange of host bytes: rank r gets send[r] of every rank; send_bytes and
    /// receive_bytes by rank, blocks packed without gaps. Chunked below 2^31.
    void all_to_all(const std::byte* send, std::span<const Index> send_bytes, std::byte* receive,
                    std::span<const Index> receive_bytes) const;

  private:
    explicit Communicator(MPI_Comm owned);
    template <class T>
    static MPI_Datatype type_of();
    void reduce_in_place(void* values, Index count, MPI_Datatype type, MPI_Op op) const;
    void broadcast_bytes(std::span<std::byte> bytes, int root) const;
    void gather_bytes(const void* value, std::size_t bytes, void* all) const;

    MPI_Comm handle_ = MPI_COMM_NULL;
    int rank_ = 0;
    int size_ = 1;
};

template <class T>
MPI_Datatype Communicator::type_of() {
    if constexpr (std::is_same_v<T, float>)
        return MPI_FLOAT;
    else if constexpr (std::is_same_v<T, double>)
        return MPI_DOUBLE;
    else if constexpr (std::is_same_v<T, std::int64_t>)
        return MPI_INT64_T;
    else if constexpr (std::is_same_v<T, std::uint64_t>)
        return MPI_UINT64_T;
    else if constexpr (std::is_same_v<T, std::int32_t>)
        return MPI_INT32_T;
    else {
        static_assert(std::is_same_v<T, std::uint32_t>, "no MPI type for this");
        return MPI_UINT32_T;
    }
}

}  // namespace clt
