// A config struct lists its fields once, in `template <class V> void fields(V& v)`; reading a job
// file, the resolved copy, `clt help`, the README table and the diff on resume all walk that list
// (app/). Rules say what a value must satisfy beyond its type, and what it is for a run that goes
// on.
#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace clt {

/// What a key is for a run that goes on.
enum class Role {
    input,      // changes the result: refused when it differs
    execution,  // does not change the result: may differ
    free,       // changes what comes: may differ, the run follows the new value from there on
};

/// A key whose value differs between two jobs, the values as TOML.
struct FieldChange {
    std::string key;  // "table.key"
    Role role = Role::input;
    std::string was, now;

    std::string text() const { return key + " (" + now + ", was " + was + ")"; }
};

struct FieldRule {
    double min = -std::numeric_limits<double>::infinity();
    double max = std::numeric_limits<double>::infinity();
    bool min_excluded = false;
    bool required = false;  // no default
    bool path = false;      // relative to the job file
    Role role = Role::input;
    std::vector<std::string> choices;  // empty: any

    FieldRule operator|(const FieldRule& other) const {
        FieldRule both = *this;
        if (other.min > both.min || (other.min == both.min && other.min_excluded)) {
            both.min = other.min;
            both.min_excluded = other.min_excluded;
        }
        if (other.max < both.max) both.max = other.max;
        both.required = required || other.required;
        both.path = path || other.path;
        if (both.role == Role::input) both.role = other.role;
        if (both.choices.empty()) both.choices = other.choices;
        return both;
    }
};

namespace rule {
inline FieldRule any() {
    return {};
}
inline FieldRule at_least(double min) {
    FieldRule r;
    r.min = min;
    return r;
}
inline FieldRule positive() {
    FieldRule r;
    r.min = 0;
    r.min_excluded = true;
    return r;
}
inline FieldRule between(double min, double max) {
    FieldRule r;
    r.min = min;
    r.max = max;
    return r;
}
/// A number that kernels take as float32, in which a smaller one is 0 and a larger one infinite.
inline FieldRule float32() {
    return between(1e-37, 1e37);
}
inline FieldRule float32_or_zero() {
    return between(0, 1e37);
}
/// A count that is multiplied by others: no real one is larger, and products still fit in 64 bits.
inline FieldRule count(double min = 1) {
    return between(min, 1e9);
}
inline FieldRule one_of(std::vector<std::string> choices) {
    FieldRule r;
    r.choices = std::move(choices);
    return r;
}
inline FieldRule required() {
    FieldRule r;
    r.required = true;
    return r;
}
inline FieldRule path() {
    FieldRule r;
    r.path = true;
    return r;
}
inline FieldRule execution() {
    FieldRule r;
    r.role = Role::execution;
    return r;
}
inline FieldRule free() {
    FieldRule r;
    r.role = Role::free;
    return r;
}
}  // namespace rule

}  // namespace clt
