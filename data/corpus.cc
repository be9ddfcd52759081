#include "data/corpus.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "data/file_io.h"
#include "data/tokenizer.h"
#include "kernels/base/log.h"
#include "kernels/base/rng.h"

namespace filigree {
namespace {

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Where to cut `text` at or before `limit`: behind the last line end in the second half, else
// behind the last space there, else between two characters.
size_t CutBefore(std::string_view text, size_t limit) {
  for (char mark : {'\n', ' '}) {
    const size_t found = text.substr(0, limit).rfind(mark);
    if (found != std::string_view::npos && found >= limit / 2) return found + 1;
  }
  size_t cut = limit;
  while (cut > 0 && cut < text.size() && IsContinuation(text[cut])) --cut;
  return cut;
}

}  // namespace

StatusOr<Corpus> Corpus::Scan(CorpusOptions options) {
  ASSIGN_OR_RETURN(TextInput input, TextInput::Open(options.inputs, options.json_key));
  Corpus corpus(std::move(options), std::move(input));
  std::unordered_set<uint64_t> seen;
  uint64_t all = 0;
  ASSIGN_OR_RETURN(corpus.counts_, corpus.input_.ForEachDocument([&](Document document) {
    corpus.Report("reading", document.input_bytes_read);
    const uint64_t hash = Hash64(document.text);
    const int64_t bytes = static_cast<int64_t>(document.text.size());
    const bool fresh = seen.insert(hash).second;
    corpus.records_.push_back({hash, bytes, fresh ? Role::kTrain : Role::kDuplicate});
    corpus.duplicate_documents_ += !fresh;
    corpus.text_bytes_ += fresh ? bytes : 0;
    all = Hash64({reinterpret_cast<const char*>(&hash), sizeof(hash)}, all);
    return OkStatus();
  }));
  if (corpus.records_.empty()) {
    return InvalidInput(corpus.options_.inputs.front() +
                        ": no text in any input; every document is empty");
  }
  corpus.inputs_hash_ = HashHex(all);
  if (corpus.counts_.replaced_bytes > 0) {
    LogWarning(std::to_string(corpus.counts_.replaced_bytes) + " bytes in " +
               std::to_string(corpus.counts_.documents_replaced) +
               " documents are not UTF-8 and were replaced by U+FFFD");
  }
  corpus.AssignSplits();
  return corpus;
}

void Corpus::AssignSplits() {
  std::vector<std::pair<uint64_t, size_t>> order;  // (random key, record)
  const uint64_t stream = RngStream("val_split");
  for (size_t i = 0; i < records_.size(); ++i) {
    if (records_[i].role == Role::kDuplicate) continue;
    order.emplace_back(RandomBits(options_.seed, stream, records_[i].hash), i);
  }
  if (options_.val_fraction == 0 || order.size() < 2) return;
  std::sort(order.begin(), order.end());

  // A document is taken where that brings the held-out bytes nearer to their target.
  const double target = options_.val_fraction * static_cast<double>(text_bytes_);
  double held_out = 0;
  std::vector<size_t> taken;
  for (const auto& [key, i] : order) {
    const double bytes = static_cast<double>(records_[i].bytes);
    if (held_out + bytes / 2 > target) continue;
    held_out += bytes;
    taken.push_back(i);
  }
  if (taken.empty()) {
    const auto smallest = std::min_element(order.begin(), order.end(), [&](auto& a, auto& b) {
      return records_[a.second].bytes < records_[b.second].bytes;
    });
    taken.push_back(smallest->second);
  }
  if (taken.size() == order.size()) taken.pop_back();
  for (size_t i : taken) records_[i].role = Role::kVal;
}

Status Corpus::ForEachText(const char* stage,
                           const std::function<Status(Split, std::string_view)>& visit) const {
  const bool single = duplicate_documents_ + 1 == static_cast<int64_t>(records_.size());
  size_t next = 0;
  const auto visit_document = [&](Document document) -> Status {
    const std::string_view text = document.text;
    if (next >= records_.size() || records_[next].hash != Hash64(text)) {
      return InvalidInput(document.place + ": changed while it was being read; prepare again");
    }
    const Role role = records_[next++].role;
    Report(stage, document.input_bytes_read);
    if (role == Role::kDuplicate) return OkStatus();
    if (!single || options_.val_fraction == 0) {
      return visit(role == Role::kTrain ? Split::kTrain : Split::kVal, text);
    }
    const double train_bytes = (1 - options_.val_fraction) * static_cast<double>(text.size());
    const size_t cut = CutBefore(text, static_cast<size_t>(train_bytes));
    // Text too short to be cut is all for training.
    if (cut == 0 || cut == text.size()) return visit(Split::kTrain, text);
    RETURN_IF_ERROR(visit(Split::kTrain, text.substr(0, cut)));
    return visit(Split::kVal, text.substr(cut));
  };
  const auto counts = input_.ForEachDocument(visit_document);
  if (counts.ok() && next != records_.size()) {
    return InvalidInput(options_.inputs.front() +
                        ": lost documents while being read; prepare again");
  }
  return counts.status();
}

StatusOr<std::vector<std::string>> Corpus::TokenizerTrainingPieces(int64_t budget_bytes) const {
  const double kept = static_cast<double>(budget_bytes) / static_cast<double>(text_bytes_);
  const uint64_t stream = RngStream("tokenizer_sample");
  std::vector<std::string> pieces;
  uint64_t number = 0;
  RETURN_IF_ERROR(ForEachText("sampling", [&](Split split, std::string_view text) {
    while (split == Split::kTrain && !text.empty()) {
      const size_t length = text.size() <= kMaxTrainingPieceBytes
                                ? text.size()
                                : CutBefore(text, kMaxTrainingPieceBytes);
      const bool keep = kept >= 1 || RandomUniform(options_.seed, stream, number) < kept;
      if (keep) pieces.emplace_back(text.substr(0, length));
      text.remove_prefix(length);
      ++number;
    }
    return OkStatus();
  }));
  return pieces;
}

std::string Corpus::Describe() const {
  return std::to_string(input_.files().size()) + " files, " +
         std::to_string(counts_.documents - duplicate_documents_) + " documents, " +
         std::to_string(text_bytes_) +
         " bytes of text; dropped: " + std::to_string(input_.duplicate_paths()) +
         " duplicate paths, " + std::to_string(duplicate_documents_) + " duplicate documents, " +
         std::to_string(counts_.empty_documents) + " empty documents";
}

void Corpus::Report(const char* stage, int64_t bytes_done) const {
  if (options_.progress) options_.progress(stage, bytes_done, input_.bytes());
}

}  // namespace filigree
