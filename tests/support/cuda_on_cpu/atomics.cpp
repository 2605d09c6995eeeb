// Fibers switch only at barriers, so plain arithmetic is atomic here.
#include "support/cuda_on_cpu/internals.hpp"

namespace emu {
namespace {

template <class T, class Update>
T update(T* address, Access access, const void* code, Update new_value) {
    check_access(address, sizeof(T), access, code);
    const T old = *address;
    *address = new_value(old);
    return old;
}

}  // namespace

template <class T>
T atomic_add(T* address, T value) {
    return update(address, Access::atomic, __builtin_return_address(0), [=](T old) {
        if constexpr (std::is_integral_v<T>) {
            using U = std::make_unsigned_t<T>;
            return static_cast<T>(static_cast<U>(old) + static_cast<U>(value));
        } else {
            return old + value;
        }
    });
}
template <class T>
T atomic_min(T* address, T value) {
    return update(address, Access::atomic, __builtin_return_address(0),
                  [=](T old) { return ::min(old, value); });
}
template <class T>
T atomic_max(T* address, T value) {
    return update(address, Access::atomic, __builtin_return_address(0),
                  [=](T old) { return ::max(old, value); });
}
template <class T>
T atomic_and(T* address, T value) {
    return update(address, Access::atomic, __builtin_return_address(0),
                  [=](T old) { return old & value; });
}
template <class T>
T atomic_or(T* address, T value) {
    return update(address, Access::atomic, __builtin_return_address(0),
                  [=](T old) { return old | value; });
}
template <class T>
T atomic_exchange(T* address, T value) {
    return update(address, Access::exchange, __builtin_return_address(0), [=](T) { return value; });
}
template <class T>
T atomic_compare_and_swap(T* address, T expected, T value) {
    return update(address, Access::atomic, __builtin_return_address(0),
                  [=](T old) { return old == expected ? value : old; });
}

template int atomic_add(int*, int);
template unsigned atomic_add(unsigned*, unsigned);
template unsigned long long atomic_add(unsigned long long*, unsigned long long);
template float atomic_add(float*, float);
template double atomic_add(double*, double);
template int atomic_min(int*, int);
template unsigned atomic_min(unsigned*, unsigned);
template long long atomic_min(long long*, long long);
template unsigned long long atomic_min(unsigned long long*, unsigned long long);
template int atomic_max(int*, int);
template unsigned atomic_max(unsigned*, unsigned);
template long long atomic_max(long long*, long long);
template unsigned long long atomic_max(unsigned long long*, unsigned long long);
template int atomic_and(int*, int);
template unsigned atomic_and(unsigned*, unsigned);
template unsigned long long atomic_and(unsigned long long*, unsigned long long);
template int atomic_or(int*, int);
template unsigned atomic_or(unsigned*, unsigned);
template unsigned long long atomic_or(unsigned long long*, unsigned long long);
template int atomic_exchange(int*, int);
template unsigned atomic_exchange(unsigned*, unsigned);
template unsigned long long atomic_exchange(unsigned long long*, unsigned long long);
template float atomic_exchange(float*, float);
template int atomic_compare_and_swap(int*, int, int);
template unsigned atomic_compare_and_swap(unsigned*, unsigned, unsigned);
template unsigned long long atomic_compare_and_swap(unsigned long long*, unsigned long long,
                                                    unsigned long long);

}  // namespace emu
