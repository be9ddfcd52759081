#include "trainer/config_changes.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

namespace filigree {
namespace {

// The fields of an effective configuration (a field or a brace a line) by their places, in order.
std::vector<std::pair<std::string, std::string>> FieldsOf(const std::string& text) {
  std::vector<std::pair<std::string, std::string>> fields;
  std::vector<std::string> open = {""};  // the places of the messages around a line
  std::map<std::string, int> seen;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t begin = line.find_first_not_of(' ');
    if (begin == line.npos || line[begin] == '#') continue;
    if (line[begin] == '}') {
      if (open.size() > 1) open.pop_back();
      continue;
    }
    const size_t end = line.find_first_of(": {", begin);
    if (end == line.npos) continue;
    std::string place = open.back() + line.substr(begin, end - begin);
    const int number = seen[place]++;
    if (number > 0) place += "[" + std::to_string(number) + "]";
    if (line.back() == '{') {
      open.push_back(place + ".");
    } else {
      fields.emplace_back(place, line.substr(std::min(line.find(' ', end) + 1, line.size())));
    }
  }
  return fields;
}

}  // namespace

std::string DescribeConfigChanges(const std::string& before, const std::string& now) {
  constexpr size_t kTold = 12;
  std::map<std::string, std::string> old;
  for (const auto& [place, value] : FieldsOf(before)) old[place] = value;
  std::vector<std::string> changes;
  for (const auto& [place, value] : FieldsOf(now)) {
    const auto was = old.find(place);
    const bool same = was != old.end() && was->second == value;
    const std::string before_it = was == old.end() ? "not set" : was->second;
    if (!same) changes.push_back(place + " " + value + " (was " + before_it + ")");
    if (was != old.end()) old.erase(was);
  }
  for (const auto& [place, value] : old) changes.push_back(place + " not set (was " + value + ")");
  std::string told;
  for (size_t i = 0; i < changes.size() && i < kTold; ++i) {
    told += (i > 0 ? ", " : "") + changes[i];
  }
  if (changes.size() > kTold) {
    told += " and " + std::to_string(changes.size() - kTold) + " more";
  }
  return told;
}

}  // namespace filigree
