// "did you mean": the closest of a few known names.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace clt {

/// Edits (insert, delete, replace, swap of neighbours) that turn a into b.
/// Source: optimal string alignment, Damerau 1964.
std::size_t edit_distance(std::string_view a, std::string_view b);

/// "; did you mean X?" for the closest candidate within a third of the name's length, else "".
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace clt
