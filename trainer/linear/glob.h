// Patterns over parameter names: `*` stands for any characters, dots included, `?` for one.
#pragma once

#include <string_view>

namespace filigree {

bool GlobMatches(std::string_view pattern, std::string_view text);

}  // namespace filigree
