#include "data/text_input.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string_view>

#include "data/byte_stream.h"
#include "data/file_io.h"

namespace filigree {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kTextSuffixes[] = {".txt", ".md", ".rst", ".tex"};
constexpr std::string_view kJsonLinesSuffixes[] = {".jsonl", ".ndjson"};

bool HasSuffix(std::string_view path, std::span<const std::string_view> suffixes) {
  for (std::string_view compressed : {".gz", ".zst"}) {
    if (path.ends_with(compressed)) path.remove_suffix(compressed.size());
  }
  return std::any_of(suffixes.begin(), suffixes.end(),
                     [&](std::string_view suffix) { return path.ends_with(suffix); });
}

// .json counts where the user names the file: corpora such as C4 call their json lines so.
bool IsJsonLines(std::string_view path) {
  constexpr std::string_view kJson[] = {".json"};
  return HasSuffix(path, kJsonLinesSuffixes) || HasSuffix(path, kJson);
}

// Collects files by their real path.
class Expansion {
 public:
  Status Add(const std::string& input) {
    std::vector<std::string> paths = ExpandGlob(input);
    // A name may contain the characters of a pattern.
    std::error_code error;
    if (paths.empty() && fs::exists(input, error)) paths.push_back(input);
    const auto seen = [&] { return static_cast<int64_t>(files_.size()) + duplicates_; };
    const int64_t before = seen();
    for (const std::string& path : paths) {
      if (fs::is_directory(path, error)) {
        RETURN_IF_ERROR(AddDirectory(path));
      } else {
        RETURN_IF_ERROR(AddFile(path));
      }
    }
    if (paths.empty())
      return InvalidInput(input +
                          ": no such file or directory, and no file matches; mend the path");
    if (seen() == before) {
      return InvalidInput(input +
                          ": no text in it; expected files named *.txt, *.md, *.rst, *.tex, "
                          "*.jsonl or *.ndjson, or those with .gz or .zst");
    }
    return OkStatus();
  }

  const std::set<std::string>& files() const { return files_; }
  int64_t duplicates() const { return duplicates_; }

 private:
  Status AddFile(const fs::path& path) {
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (error || !fs::is_regular_file(real, error)) {
      return InvalidInput(path.string() + ": cannot be read as a file" +
                          (error ? ": " + error.message() : ""));
    }
    if (!files_.insert(real.string()).second) ++duplicates_;
    return OkStatus();
  }

  // Each real directory once, so that a symlink to a parent ends somewhere.
  Status AddDirectory(const fs::path& path) {
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (!error && !directories_.insert(real.string()).second) {
      ++duplicates_;
      return OkStatus();
    }
    for (fs::directory_iterator entry(real, error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().string();
      std::error_code broken_link;
      if (fs::is_directory(entry->path(), broken_link)) {
        RETURN_IF_ERROR(AddDirectory(entry->path()));
      } else if (fs::is_regular_file(entry->path(), broken_link) &&
                 (HasSuffix(name, kTextSuffixes) || HasSuffix(name, kJsonLinesSuffixes))) {
        RETURN_IF_ERROR(AddFile(entry->path()));
      }
    }
    if (error) return InvalidInput(path.string() + ": cannot be listed: " + error.message());
    return OkStatus();
  }

  std::set<std::string> files_, directories_;
  int64_t duplicates_ = 0;
};

// The string under `key` of one line of JSON.
StatusOr<std::string> ExtractText(const std::string& line, const std::string& key,
                                  const std::string& place) {
  using Json = nlohmann::json;
  try {
    Json json = Json::parse(line);
    if (!json.is_object()) {
      return InvalidInput(place + ": is no JSON object; expected one object a line");
    }
    const auto field = json.find(key);
    if (field != json.end() && field->is_string()) {
      return std::move(field->get_ref<std::string&>());
    }
    std::string names;
    for (const auto& [name, value] : json.items()) {
      if (value.is_string()) names += (names.empty() ? "" : ", ") + name;
    }
    return InvalidInput(place + ": has no string \"" + key + "\"; its strings are: " +
                        (names.empty() ? "none" : names) + "; name one with --json-key");
  } catch (const Json::exception& error) {
    return InvalidInput(place + ": is not valid JSON (" + error.what() +
                        "); expected one object a line");
  }
}

// The length of the valid UTF-8 sequence at `text`, 0 where there is none (RFC 3629: no overlong
// forms, no surrogates, nothing above U+10FFFF).
size_t SequenceLength(const unsigned char* text, size_t available) {
  const unsigned char lead = text[0];
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || length > available) return 0;
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (text[1] < low || text[1] > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((text[i] & 0xC0) != 0x80) return 0;
  }
  return length;
}

// One pass over the files: cleans and counts documents and hands them on.
class Pass {
 public:
  Pass(const std::string& json_key, const std::function<Status(Document)>& visit)
      : json_key_(json_key), visit_(visit) {}

  Status ReadTextFile(const std::string& path) {
    ASSIGN_OR_RETURN(auto stream, ByteStream::Open(path));
    std::string text;
    RETURN_IF_ERROR(stream->ReadAll(&text));
    counts_.replaced_bytes += CountReplaced(&text);
    return HandOut(std::move(text), path, stream->input_bytes());
  }

  Status ReadJsonLines(const std::string& path) {
    ASSIGN_OR_RETURN(auto stream, ByteStream::Open(path));
    std::string line;
    for (int64_t number = 1;; ++number) {
      ASSIGN_OR_RETURN(const bool more, stream->ReadLine(&line));
      if (!more) return OkStatus();
      if (line.find_first_not_of(" \t\r\n") == std::string::npos) continue;
      counts_.replaced_bytes += CountReplaced(&line);
      const std::string place = path + ":" + std::to_string(number);
      ASSIGN_OR_RETURN(std::string text, ExtractText(line, json_key_, place));
      RETURN_IF_ERROR(HandOut(std::move(text), place, stream->input_bytes()));
    }
  }

  void FinishFile(int64_t file_bytes) { bytes_before_ += file_bytes; }
  const TextInputCounts& counts() const { return counts_; }

 private:
  int64_t CountReplaced(std::string* text) {
    const int64_t replaced = ReplaceInvalidUtf8(text);
    counts_.documents_replaced += replaced > 0;
    return replaced;
  }

  Status HandOut(std::string text, std::string place, int64_t file_bytes_read) {
    if (text.empty()) {
      ++counts_.empty_documents;
      return OkStatus();
    }
    ++counts_.documents;
    return visit_({std::move(text), std::move(place), bytes_before_ + file_bytes_read});
  }

  const std::string& json_key_;
  const std::function<Status(Document)>& visit_;
  TextInputCounts counts_;
  int64_t bytes_before_ = 0;
};

}  // namespace

int64_t ReplaceInvalidUtf8(std::string* text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text->data());
  const size_t size = text->size();
  std::string cleaned;
  int64_t replaced = 0;
  size_t kept = 0;  // everything before is in `cleaned`
  for (size_t i = 0; i < size;) {
    const size_t length = SequenceLength(bytes + i, size - i);
    if (length == 0) {
      cleaned.append(*text, kept, i - kept).append("\uFFFD");
      kept = i + 1;
      ++replaced;
    }
    i += std::max<size_t>(length, 1);
  }
  if (replaced > 0) *text = cleaned.append(*text, kept);
  return replaced;
}

StatusOr<TextInput> TextInput::Open(const std::vector<std::string>& inputs,
                                    const std::string& json_key) {
  if (inputs.empty()) return InvalidInput("prepare: no input is given; name text with --input");
  Expansion expansion;
  for (const std::string& input : inputs) RETURN_IF_ERROR(expansion.Add(input));
  TextInput text;
  text.files_.assign(expansion.files().begin(), expansion.files().end());
  text.json_key_ = json_key;
  text.duplicate_paths_ = expansion.duplicates();
  for (const std::string& file : text.files_) {
    std::error_code error;
    text.bytes_ += static_cast<int64_t>(fs::file_size(file, error));
    if (error) return InvalidInput(file + ": " + error.message());
  }
  return text;
}

StatusOr<TextInputCounts> TextInput::ForEachDocument(
    const std::function<Status(Document)>& visit) const {
  Pass pass(json_key_, visit);
  for (const std::string& file : files_) {
    RETURN_IF_ERROR(IsJsonLines(file) ? pass.ReadJsonLines(file) : pass.ReadTextFile(file));
    std::error_code error;
    pass.FinishFile(static_cast<int64_t>(fs::file_size(file, error)));
  }
  return pass.counts();
}

}  // namespace filigree
