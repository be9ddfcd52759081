#include "data/token_dataset.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace filigree {

StatusOr<TokenDataset> TokenDataset::Open(const std::string& glob,
                                          std::optional<DType> bare_dtype) {
  std::vector<std::string> paths = ExpandGlob(glob);
  // The bare prefix of a Megatron pair names no file itself.
  if (paths.empty() && !ExpandGlob(glob + ".idx").empty()) paths = ExpandGlob(glob + ".idx");
  if (paths.empty()) {
    return InvalidInput(glob + ": no token shard matches; run `filigree prepare` or mend the path");
  }
  TokenDataset dataset;
  dataset.glob_ = glob;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path, bare_dtype));
    // Both files of one Megatron pair may match; they are neighbours in the sorted list only where
    // no other name lies between.
    const bool known = std::any_of(dataset.shards_.begin(), dataset.shards_.end(),
                                   [&](const TokenShard& s) { return s.path() == shard.path(); });
    if (known) continue;
    const int64_t before = dataset.ends_.empty() ? 0 : dataset.ends_.back();
    dataset.ends_.push_back(before + shard.size());
    dataset.shards_.push_back(std::move(shard));
  }
  return dataset;
}

void TokenDataset::Read(int64_t begin, int64_t count, int32_t* out) const {
  CHECK(begin >= 0 && count >= 0 && begin + count <= size())
      << glob_ << ": tokens " << begin << " + " << count << " of " << size();
  size_t shard = std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin();
  while (count > 0) {
    const int64_t offset = begin - (ends_[shard] - shards_[shard].size());
    const int64_t part = std::min(count, shards_[shard].size() - offset);
    shards_[shard].Read(offset, part, out);
    begin += part;
    count -= part;
    out += part;
    ++shard;
  }
}

Status TokenDataset::CheckVocabulary(int64_t vocab_size) const {
  for (const TokenShard& shard : shards_) {
    if (const auto misfit = shard.FindOutside(vocab_size)) {
      return InvalidInput(shard.path() + ": token " + std::to_string(misfit->position) +
                          " has id " + std::to_string(misfit->id) + ", beyond the vocabulary of " +
                          std::to_string(vocab_size) +
                          "; raise model.vocab_size to the tokenizer's, or prepare the data with "
                          "the model's tokenizer");
    }
  }
  return OkStatus();
}

namespace {

// Calls visit(position, id) for every token.
template <typename Visitor>
void ForEachToken(const TokenDataset& dataset, Visitor&& visit) {
  std::vector<int32_t> block(1 << 16);
  for (int64_t begin = 0; begin < dataset.size(); begin += static_cast<int64_t>(block.size())) {
    const int64_t count = std::min<int64_t>(block.size(), dataset.size() - begin);
    dataset.Read(begin, count, block.data());
    for (int64_t i = 0; i < count; ++i) visit(begin + i, block[i]);
  }
}

}  // namespace

StatusOr<std::vector<int64_t>> TokenDataset::DocumentStarts(int32_t delimiter_id) const {
  std::vector<int64_t> starts;
  if (std::all_of(shards_.begin(), shards_.end(),
                  [](const TokenShard& s) { return !s.document_starts().empty(); })) {
    for (size_t s = 0; s < shards_.size(); ++s) {
      const int64_t offset = ends_[s] - shards_[s].size();
      for (int64_t start : shards_[s].document_starts()) starts.push_back(offset + start);
    }
    return starts;
  }
  int32_t first = 0;
  Read(0, 1, &first);
  const int64_t shift = first == delimiter_id ? 0 : 1;  // prepended or appended
  starts.push_back(0);
  bool found = false;
  ForEachToken(*this, [&](int64_t position, int32_t id) {
    if (id != delimiter_id) return;
    found = true;
    const int64_t start = position + shift;
    if (start > 0 && start < size()) starts.push_back(start);
  });
  if (!found) {
    return InvalidInput(glob_ + ": the document delimiter " + std::to_string(delimiter_id) +
                        " never occurs; name the id that separates documents in this data, or use "
                        "the packed layout");
  }
  return starts;
}

StatusOr<std::vector<int64_t>> CountTokens(const TokenDataset& dataset, int64_t vocab_size) {
  RETURN_IF_ERROR(dataset.CheckVocabulary(vocab_size));
  std::vector<int64_t> counts(vocab_size, 0);
  ForEachToken(dataset, [&](int64_t, int32_t id) { ++counts[id]; });
  return counts;
}

double UnigramEntropy(std::span<const int64_t> counts) {
  const double total =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double entropy = 0;
  for (int64_t count : counts) {
    const double p = static_cast<double>(count) / total;
    if (count > 0) entropy -= p * std::log(p);
  }
  return entropy;
}

double UnigramCrossEntropy(std::span<const int64_t> counts, std::span<const int64_t> model_counts) {
  CHECK_EQ(counts.size(), model_counts.size());
  const double total =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  const double model_total =
      static_cast<double>(std::accumulate(model_counts.begin(), model_counts.end(), int64_t{0}) +
                          static_cast<int64_t>(model_counts.size()));
  double entropy = 0;
  for (size_t id = 0; id < counts.size(); ++id) {
    if (counts[id] == 0) continue;
    const double p = static_cast<double>(counts[id]) / total;
    entropy -= p * std::log(static_cast<double>(model_counts[id] + 1) / model_total);
  }
  return entropy;
}

StatusOr<double> UnigramEntropy(const TokenDataset& dataset, int64_t vocab_size) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> counts, CountTokens(dataset, vocab_size));
  return UnigramEntropy(counts);
}

}  // namespace filigree
