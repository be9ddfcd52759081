#include "trainer/linear/glob.h"

namespace filigree {

bool GlobMatches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0;
  // Where to go back to: just behind the last `*`, and the text it has swallowed so far.
  size_t star = std::string_view::npos, swallowed = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*') {
      ++p;
      ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = ++p;
      swallowed = t;
    } else if (star != std::string_view::npos) {
      p = star;
      t = ++swallowed;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace filigree
