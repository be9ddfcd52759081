#include "trainer/config/problems.h"

#include <algorithm>

namespace filigree::config {

void Origins::EraseList(const std::string& path) {
  const std::string prefix = path + "[";
  auto end = places_.lower_bound(prefix);
  while (end != places_.end() && end->first.compare(0, prefix.size(), prefix) == 0) ++end;
  places_.erase(places_.lower_bound(prefix), end);
}

Place Origins::Find(std::string path) const {
  while (true) {
    if (auto found = places_.find(path); found != places_.end()) return found->second;
    const size_t dot = path.rfind('.');
    if (dot == std::string::npos) return Place{};
    path.resize(dot);
  }
}

void Problems::AddSyntax(Place place, const std::string& message) {
  Add(place, message);
  malformed_[place] = true;
}

void Problems::Add(Place place, const std::string& message) {
  if (malformed_.count(place)) return;
  std::vector<std::string>& messages = messages_[place];
  if (std::find(messages.begin(), messages.end(), message) == messages.end()) {
    messages.push_back(message);
  }
}

Status Problems::ToStatus() const {
  std::string text;
  for (const auto& [place, messages] : messages_) {
    for (const std::string& message : messages) {
      if (!text.empty()) text += "\n";
      text += source_names_[place.source];
      // An override is one argument, so its number says enough.
      if (place.source == 0 && place.line > 0) text += ":" + std::to_string(place.line);
      text += ": " + message;
    }
  }
  return text.empty() ? OkStatus() : InvalidInput(text);
}

}  // namespace filigree::config
