#include "clt/comm/communicator.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include "clt/base/disk_full.hpp"
#include "clt/base/progress.hpp"
#include "clt/base/stop.hpp"
#include "clt/base/stopwatch.hpp"

namespace clt {
namespace {

// MPI counts are int; blocks of 2^30 bytes stay below it with room for alignment.
constexpr Index max_count = Index{1} << 30;

enum class Kind : int { none = 0, user = 1, library = 2, internal = 3, stopped = 4, disk_full = 5 };

struct Failure {
    Kind kind = Kind::none;
    std::string message;
};

Failure describe(const std::exception_ptr& failure) {
    if (!failure) return {};
    try {
        std::rethrow_exception(failure);
    } catch (const DiskFullError& e) {
        return {Kind::disk_full, e.what()};
    } catch (const UserError& e) {
        return {Kind::user, e.what()};
    } catch (const LibraryError& e) {
        return {Kind::library, e.what()};
    } catch (const Stopped& e) {
        return {Kind::stopped, e.what()};
    } catch (const std::exception& e) {
        return {Kind::internal, e.what()};
    } catch (...) {
        return {Kind::internal, "unknown exception"};
    }
}

}  // namespace

void check_mpi(int code, const char* call) {
    if (code == MPI_SUCCESS) return;
    char words[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, words, &length);
    library_error(call, code, words);
}

MpiSession::MpiSession(int& argc, char**& argv) {
    // Open MPI's own MPI-IO (4.1) loses collective writes on a full disk without a word, and reads
    // 3 to 4 times slower than ROMIO at 4 ranks. A user's choice in the environment stays; other
    // MPI libraries take no notice.
    ::setenv("OMPI_MCA_io", "^ompio", /*overwrite=*/0);
    int provided = 0;
    check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    // Communicators made from world inherit this; errors then come back as codes and become
    // LibraryError.
    check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
              "MPI_Comm_set_errhandler");
    int rank = 0;
    check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
    set_process_rank(rank);
    if (provided < MPI_THREAD_MULTIPLE)
        user_error("this MPI library offers thread level {}, clt needs MPI_THREAD_MULTIPLE ({})",
                   provided, static_cast<int>(MPI_THREAD_MULTIPLE));
}

MpiSession::~MpiSession() {
    if (std::uncaught_exceptions() == exceptions_at_start_) MPI_Finalize();
}

void MpiSession::abort(int exit_code) {
    do_last_acts();
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
}

Communicator::Communicator(MPI_Comm owned) : handle_(owned) {
    check_mpi(MPI_Comm_rank(handle_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(handle_, &size_), "MPI_Comm_size");
}

Communicator::Communicator(Communicator&& other) noexcept
    : handle_(std::exchange(other.handle_, MPI_COMM_NULL)),
      rank_(other.rank_),
      size_(other.size_) {}

Communicator& Communicator::operator=(Communicator&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(rank_, other.rank_);
    std::swap(size_, other.size_);
    return *this;
}

Communicator::~Communicator() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective: while unwinding, the other ranks may be elsewhere.
    if (handle_ != MPI_COMM_NULL && finalized == 0 && std::uncaught_exceptions() == 0)
        MPI_Comm_free(&handle_);
}

Communicator Communicator::world() {
    MPI_Comm copy = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
    return Communicator(copy);
}

Communicator Communicator::duplicate() const {
    MPI_Comm copy = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(handle_, &copy), "MPI_Comm_dup");
    return Communicator(copy);
}

Communicator Communicator::split(int color, int key) const {
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(handle_, color, key, &part), "MPI_Comm_split");
    return Communicator(part);
}

Communicator Communicator::split_by_host() const {
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(handle_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &part),
              "MPI_Comm_split_type");
    return Communicator(part);
}

void Communicator::barrier() const {
    const WaitsIn wait("MPI_Barrier");
    check_mpi(MPI_Barrier(handle_), "MPI_Barrier");
}

bool Communicator::all_arrive_within(double timeout_s) const {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(handle_, &request), "MPI_Ibarrier");
    const Stopwatch watch;
    int arrived = 0;
    for (;;) {
        check_mpi(MPI_Test(&request, &arrived, MPI_STATUS_IGNORE), "MPI_Test");
        if (arrived != 0 || watch.seconds() > timeout_s) return arrived != 0;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

bool Communicator::agree(bool ok) const {
    return all_reduce_min(std::int32_t{ok ? 1 : 0}) == 1;
}

bool Communicator::stop_requested_anywhere() const {
    return all_reduce_max(std::int32_t{stop_requested() ? 1 : 0}) != 0;
}

void Communicator::stop_point(const std::string& doing) const {
    if (stop_requested_anywhere()) stopped_while(doing);
}

void Communicator::throw_together(const std::exception_ptr& failure) const {
    const Failure own = describe(failure);
    const std::int32_t first = all_reduce_min(own.kind == Kind::none ? size_ : rank_);
    if (first == size_) return;
    const auto kind = static_cast<Kind>(broadcast(static_cast<int>(own.kind), first));
    const std::string message = broadcast(own.message, first);
    switch (kind) {
        case Kind::disk_full:
            throw DiskFullError(message);
        case Kind::user:
            throw UserError(message);
        case Kind::library:
            throw LibraryError(message);
        case Kind::stopped:
            throw Stopped(message);
        default:
            throw InternalError(message);
    }
}

std::string Communicator::broadcast(const std::string& text, int root) const {
    const auto length = broadcast(static_cast<Index>(text.size()), root);
    std::string copy = rank_ == root ? text : std::string(static_cast<std::size_t>(length), '\0');
    broadcast_bytes(std::as_writable_bytes(std::span<char>(copy)), root);
    return copy;
}

void Communicator::broadcast_bytes(std::span<std::byte> bytes, int root) const {
    const WaitsIn wait("MPI_Bcast");
    for (std::size_t at = 0; at < bytes.size(); at += max_count) {
        const auto count = std::min<std::size_t>(max_count, bytes.size() - at);
        check_mpi(MPI_Bcast(bytes.data() + at, static_cast<int>(count), MPI_BYTE, root, handle_),
                  "MPI_Bcast");
    }
}

void Communicator::reduce_in_place(void* values, Index count, MPI_Datatype type, MPI_Op op) const {
    const WaitsIn wait("MPI_Allreduce");
    int width = 0;
    MPI_Type_size(type, &width);
    for (Index at = 0; at < count; at += max_count) {
        check_mpi(
            MPI_Allreduce(MPI_IN_PLACE, static_cast<std::byte*>(values) + at * width,
                          static_cast<int>(std::min(max_count, count - at)), type, op, handle_),
            "MPI_Allreduce");
    }
}

void Communicator::gather_bytes(const void* value, std::size_t bytes, void* all) const {
    const WaitsIn wait("MPI_Allgather");
    check_mpi(MPI_Allgather(value, static_cast<int>(bytes), MPI_BYTE, all, static_cast<int>(bytes),
                            MPI_BYTE, handle_),
              "MPI_Allgather");
}

Index Communicator::exclusive_sum(Index value) const {
    Index sum = 0;
    const WaitsIn wait("MPI_Exscan");
    check_mpi(MPI_Exscan(&value, &sum, 1, MPI_INT64_T, MPI_SUM, handle_), "MPI_Exscan");
    return rank_ == 0 ? 0 : sum;  // MPI leaves rank 0's result undefined
}

void Communicator::all_to_all(const std::byte* send, std::span<const Index> send_bytes,
                              std::byte* receive, std::span<const Index> receive_bytes) const {
    CLT_CHECK(static_cast<int>(send_bytes.size()) == size_ &&
              static_cast<int>(receive_bytes.size()) == size_);
    // Point to point instead of MPI_Alltoallv: its displacements are int and a batch may pass 2^31
    // bytes.
    std::vector<MPI_Request> requests;
    Index at = 0;
    for (int r = 0; r < size_; at += receive_bytes[static_cast<std::size_t>(r)], ++r)
        for (Index done = 0; done < receive_bytes[static_cast<std::size_t>(r)]; done += max_count) {
            requests.emplace_back();
            check_mpi(MPI_Irecv(receive + at + done,
                                static_cast<int>(std::min(
                                    max_count, receive_bytes[static_cast<std::size_t>(r)] - done)),
                                MPI_BYTE, r, 0, handle_, &requests.back()),
                      "MPI_Irecv");
        }
    at = 0;
    for (int r = 0; r < size_; at += send_bytes[static_cast<std::size_t>(r)], ++r)
        for (Index done = 0; done < send_bytes[static_cast<std::size_t>(r)]; done += max_count) {
            requests.emplace_back();
            check_mpi(MPI_Isend(send + at + done,
                                static_cast<int>(std::min(
                                    max_count, send_bytes[static_cast<std::size_t>(r)] - done)),
                                MPI_BYTE, r, 0, handle_, &requests.back()),
                      "MPI_Isend");
        }
    const WaitsIn wait("MPI_Waitall");
    check_mpi(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE),
              "MPI_Waitall");
}

}  // namespace clt
