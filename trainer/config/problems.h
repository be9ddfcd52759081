// What is wrong with a configuration, and where.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace filigree::config {

// A line of a source: 0 is the file, i the i-th override. Lines count from 1; 0: the source as a
// whole.
struct Place {
  int source = 0;
  int line = 0;
  auto operator<=>(const Place&) const = default;
};

// Where each field of the merged configuration was written. Fields go by path from the root:
// "batch.seq_len", "phase[1].sparsity[0].sparsity".
class Origins {
 public:
  void Set(const std::string& path, Place place) { places_[path] = place; }
  // Forgets a list that another source replaces.
  void EraseList(const std::string& path);
  // The place of `path` or, where it was not written, of the message around it.
  Place Find(std::string path) const;
  bool Has(const std::string& path) const { return places_.count(path) > 0; }

 private:
  std::map<std::string, Place> places_;
};

class Problems {
 public:
  explicit Problems(std::vector<std::string> source_names)
      : source_names_(std::move(source_names)) {}

  // A malformed text. Whatever is later found on the same line follows from it and is dropped.
  void AddSyntax(Place place, const std::string& message);
  // Reported once, however often it is found.
  void Add(Place place, const std::string& message);
  bool empty() const { return messages_.empty(); }
  // OK, or one InvalidInput with all of them.
  Status ToStatus() const;

 private:
  std::vector<std::string> source_names_;
  std::map<Place, bool> malformed_;
  std::map<Place, std::vector<std::string>> messages_;
};

}  // namespace filigree::config
