// The text that `prepare` reads: files, directories and globs as a stream of documents.
//
// One text file is one document; one line of a .jsonl (.ndjson, .json) file is one document, the
// string under `json_key`. Either may be compressed with gzip or zstd (told by content, not by
// name). Line ends are kept as they are. A byte sequence that is no UTF-8 becomes U+FFFD, byte by
// byte.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

struct Document {
  std::string text;              // valid UTF-8, never empty
  std::string place;             // "path" or "path:line", for messages
  int64_t input_bytes_read = 0;  // of all inputs on disk so far, for progress
};

// Counted over one pass.
struct TextInputCounts {
  int64_t documents = 0;           // handed out
  int64_t empty_documents = 0;     // skipped
  int64_t replaced_bytes = 0;      // invalid UTF-8
  int64_t documents_replaced = 0;  // documents with any of those
};

class TextInput {
 public:
  // Expands `inputs`. A directory stands for its *.txt, *.md, *.rst, *.tex, *.jsonl and *.ndjson
  // (and those with .gz or .zst), recursively, through symlinks; a file or glob is taken whatever
  // its name. Files are known by their real path, so one reached twice counts once; they are read
  // in bytewise order of it. InvalidInput: an input matches nothing or cannot be read.
  static StatusOr<TextInput> Open(const std::vector<std::string>& inputs,
                                  const std::string& json_key);

  const std::vector<std::string>& files() const { return files_; }
  // Paths that led to a file or directory already listed.
  int64_t duplicate_paths() const { return duplicate_paths_; }
  int64_t bytes() const { return bytes_; }

  // Hands out every document in order, one in memory at a time, until `visit` returns an error.
  // InvalidInput: a line of a .jsonl file is no object with a string under the key (names
  // file:line), or a compressed file is damaged.
  StatusOr<TextInputCounts> ForEachDocument(const std::function<Status(Document)>& visit) const;

 private:
  TextInput() = default;

  std::vector<std::string> files_;
  std::string json_key_;
  int64_t duplicate_paths_ = 0;
  int64_t bytes_ = 0;
};

// Replaces every byte that is part of no valid UTF-8 sequence by U+FFFD; returns how many.
int64_t ReplaceInvalidUtf8(std::string* text);

}  // namespace filigree
