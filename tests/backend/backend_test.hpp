// Every kernel test runs on the backend of the environment, against loops in double in the test
// file.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "clt/backend/backend.hpp"
#include "support/test_backend.hpp"

namespace clt::test {

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float nan = std::numeric_limits<float>::quiet_NaN();

class BackendTest : public testing::TestWithParam<std::string> {
  protected:
    std::unique_ptr<Backend> owner_ = make_backend(GetParam(), Communicator::world(), "float32");
    Backend& backend_ = *owner_;
};

#define CLT_ON_THE_TEST_BACKEND(suite)                                        \
    INSTANTIATE_TEST_SUITE_P(On, suite, testing::Values(test_backend_name()), \
                             [](const auto& i) { return i.param; })

/// An array in backend memory, made from and read back as a host vector.
template <class T>
class Array {
  public:
    Array(Backend& backend, const std::vector<T>& host)
        : backend_(backend),
          buffer_(backend.memory(), static_cast<Index>(host.size()), Purpose::workspace) {
        backend.upload(std::span<const T>(host), buffer_.span());
    }
    Array(Backend& backend, Index n, T value)
        : Array(backend, std::vector<T>(static_cast<std::size_t>(n), value)) {}

    Span<T> span() { return buffer_.span(); }
    Matrix<T> matrix(Index rows, Index cols) { return {buffer_.span(), rows, cols}; }
    std::vector<T> host() const { return read(backend_, buffer_.span(), buffer_.size()); }

    static std::vector<T> read(Backend& backend, Span<const T> span, Index n) {
        std::vector<T> host(static_cast<std::size_t>(n));
        backend.download(span.subspan(0, n), std::span<T>(host));
        return host;
    }

  private:
    Backend& backend_;
    Buffer<T> buffer_;
};

template <class T>
std::vector<T> read(Backend& backend, const Buffer<T>& buffer, Index n) {
    return Array<T>::read(backend, buffer.span(), n);
}
template <class T>
void write(Backend& backend, const std::vector<T>& host, Buffer<T>& buffer, Purpose purpose) {
    buffer = Buffer<T>(backend.memory(), static_cast<Index>(host.size()), purpose);
    backend.upload(std::span<const T>(host), buffer.span());
}

/// What `call(Span<T> sum)` leaves in a sum of 0.
template <class T = double, class Call>
T sum_of(Backend& backend, Call call) {
    Array<T> sum(backend, {T{0}});
    call(sum.span());
    return sum.host()[0];
}

inline std::vector<float> normal(Index n, unsigned seed, float scale = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution(0, scale);
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = distribution(generator);
    return values;
}

/// A sum in double with what bounds the rounding of the same sum in float.
struct Sum {
    double value = 0;
    double magnitude = 0;  // sum of |terms|
    Index terms = 0;

    void add(double term) {
        value += term;
        magnitude += std::abs(term);
        ++terms;
    }
};

/// Each of n additions, and each term's own products, may round by eps / 2 of the magnitude; 4
/// times the random walk of that.
inline double tolerance(const Sum& sum) {
    constexpr auto eps = static_cast<double>(std::numeric_limits<float>::epsilon());
    return 4 * eps * std::sqrt(static_cast<double>(sum.terms) + 1) * sum.magnitude + 1e-37;
}

inline void expect_close(double got, const Sum& expected, const std::string& what) {
    if (!(std::abs(got - expected.value) <= tolerance(expected)))
        ADD_FAILURE() << what << ": " << got << ", expected " << expected.value << " +- "
                      << tolerance(expected);
}

/// Relative to `scale`; the tolerance's reason stands at the call.
inline void expect_near(double got, double expected, double allowed, const std::string& what) {
    if (!(std::abs(got - expected) <= allowed))
        ADD_FAILURE() << what << ": " << got << ", expected " << expected << " +- " << allowed;
}

/// One entry of an active set.
struct Entry {
    std::int32_t row;
    std::int32_t token;
    float value;
    bool operator==(const Entry&) const = default;
};

/// Entries ascending by (row, token); pre = value, gradient 0.
ActiveSet active_set(Backend& backend, Index rows, Index tokens, const std::vector<Entry>& entries);

/// Each (row, token) is active with this probability; values normal.
std::vector<Entry> random_entries(Index rows, Index tokens, double density, unsigned seed);

/// Candidates with these entries; pre = value = score.
Candidates candidates_of(Backend& backend, const std::vector<Entry>& entries);
std::vector<Entry> entries_of(Backend& backend, const Candidates& candidates);

}  // namespace clt::test
