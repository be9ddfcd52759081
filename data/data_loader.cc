#include "data/data_loader.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/base/rng.h"

namespace filigree {
namespace {

constexpr int kShareBits = 62;

// floor(count * share / 2^62)
int64_t TakeShare(int64_t count, uint64_t share) {
  return static_cast<int64_t>((static_cast<unsigned __int128>(count) * share) >> kShareBits);
}

Status CheckOptions(const DataLoaderOptions& options) {
  if (options.sources.empty())
    return InvalidInput("data: no source is given; name a glob of shards");
  if (options.seq_len < 1) {
    return InvalidInput("data: seq_len is " + std::to_string(options.seq_len) +
                        "; it must be positive");
  }
  if (options.vocab_size < 1 || options.vocab_size > std::numeric_limits<int32_t>::max()) {
    return InvalidInput("data: vocab_size is " + std::to_string(options.vocab_size) +
                        "; it must be positive and below 2^31");
  }
  bool weighted = false, unweighted = false;
  for (const DataSource& source : options.sources) {
    if (!std::isfinite(source.weight) || source.weight < 0) {
      return InvalidInput("data: the weight of " + source.glob + " is " +
                          std::to_string(source.weight) + "; it must be positive");
    }
    (source.weight > 0 ? weighted : unweighted) = true;
  }
  if (weighted && unweighted) {
    return InvalidInput("data: some sources have a weight and some have none; give each one");
  }
  if (options.layout == SampleLayout::kPacked) {
    if (options.loss_after_token < 0) return OkStatus();
    return InvalidInput(
        "data: loss_after_token needs one document a row (a packed row may begin "
        "behind the token); set layout: ONE_DOCUMENT_PER_ROW or leave it out");
  }
  for (const auto& [name, id] :
       {std::pair{"delimiter_id", options.delimiter_id}, std::pair{"pad_id", options.pad_id}}) {
    if (id < 0 || id >= options.vocab_size) {
      return InvalidInput("data: one document a row needs " + std::string(name) +
                          " in the vocabulary of " + std::to_string(options.vocab_size) +
                          "; it is " + std::to_string(id));
    }
  }
  return OkStatus();
}

}  // namespace

StatusOr<DataLoader> DataLoader::Open(DataLoaderOptions options) {
  RETURN_IF_ERROR(CheckOptions(options));
  DataLoader loader;
  loader.options_ = std::move(options);
  for (const DataSource& source : loader.options_.sources) {
    RETURN_IF_ERROR(loader.AddSource(source.glob));
  }
  loader.SetShares();
  loader.samples_per_epoch_ = loader.FindSamplesPerEpoch();
  return loader;
}

Status DataLoader::AddSource(const std::string& glob) {
  ASSIGN_OR_RETURN(TokenDataset dataset, TokenDataset::Open(glob, options_.bare_dtype));
  RETURN_IF_ERROR(dataset.CheckVocabulary(options_.vocab_size));
  const int64_t seq_len = options_.seq_len;
  Source source(std::move(dataset));
  const int64_t tokens = source.dataset.size();
  if (options_.layout == SampleLayout::kPacked) {
    source.samples = (tokens - 1) / seq_len;
    source.dropped_tokens = tokens - 1 - source.samples * seq_len;
    if (source.samples == 0) {
      return InvalidInput(glob + ": holds " + std::to_string(tokens) +
                          " tokens, fewer than one sample of seq_len + 1 = " +
                          std::to_string(seq_len + 1) + "; shorten seq_len or add data");
    }
  } else {
    ASSIGN_OR_RETURN(source.row_starts, source.dataset.DocumentStarts(options_.delimiter_id));
    source.samples = static_cast<int64_t>(source.row_starts.size());
    source.row_starts.push_back(tokens);
    for (int64_t row = 0; row < source.samples; ++row) {
      const int64_t length = source.row_starts[row + 1] - source.row_starts[row];
      source.dropped_tokens += std::max<int64_t>(0, length - seq_len - 1);
    }
  }
  sources_.push_back(std::move(source));
  return OkStatus();
}

void DataLoader::SetShares() {
  const auto weight = [&](size_t s) {
    const double given = options_.sources[s].weight;
    return given > 0 ? given : static_cast<double>(sources_[s].samples);
  };
  double rest = 0;
  for (size_t s = sources_.size(); s-- > 0;) {
    rest += weight(s);
    // Rounded up by more than the error of the division, so that n samples of a share k / n are k
    // and not k - 1.
    const double share = std::ldexp(weight(s) / rest, kShareBits);
    constexpr uint64_t kWhole = 1ull << kShareBits, kRoundUp = 1ull << (kShareBits - 52);
    sources_[s].share = std::min(kWhole, static_cast<uint64_t>(share) + kRoundUp);
  }
}

DataLoader::Draw DataLoader::Locate(int64_t sample) const {
  CHECK_GE(sample, 0);
  const int last = num_sources() - 1;
  for (int s = 0; s < last; ++s) {
    const int64_t before = TakeShare(sample, sources_[s].share);
    if (TakeShare(sample + 1, sources_[s].share) > before) return {s, before};
    sample -= before;
  }
  return {last, sample};
}

// How many of the first `samples` samples draw from the source.
int64_t DataLoader::DrawsFrom(int source, int64_t samples) const {
  for (int s = 0; s < source; ++s) samples -= TakeShare(samples, sources_[s].share);
  return source == num_sources() - 1 ? samples : TakeShare(samples, sources_[source].share);
}

int64_t DataLoader::FindSamplesPerEpoch() const {
  int64_t epoch = 0;
  for (int s = 0; s < num_sources(); ++s) {
    int64_t low = sources_[s].samples, high = low;  // DrawsFrom(s, n) <= n
    while (DrawsFrom(s, high) < sources_[s].samples) high *= 2;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (DrawsFrom(s, middle) < sources_[s].samples) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    epoch = std::max(epoch, low);
  }
  return epoch;
}

int64_t DataLoader::RowOf(const Draw& draw) const {
  const int64_t rows = sources_[draw.source].samples;
  const int64_t epoch = draw.index / rows, position = draw.index % rows;
  if (!options_.shuffle) return position;
  const uint64_t stream =
      RngStream("data_order", std::to_string(draw.source), static_cast<uint64_t>(epoch));
  const RandomPermutation order(options_.seed, stream, static_cast<uint64_t>(rows));
  return static_cast<int64_t>(order(static_cast<uint64_t>(position)));
}

void DataLoader::ReadSamples(int64_t first_sample, int64_t count, int32_t* tokens,
                             int32_t* targets) const {
  std::vector<int32_t> window(options_.seq_len + 1);
  for (int64_t i = 0; i < count; ++i) {
    const Draw draw = Locate(first_sample + i);
    const Source& source = sources_[draw.source];
    const int64_t row = RowOf(draw);
    const int64_t length = options_.layout == SampleLayout::kPacked
                               ? ReadPacked(source, row, window.data())
                               : ReadDocument(source, row, window.data());
    WriteRow(window.data(), length, tokens + i * options_.seq_len, targets + i * options_.seq_len);
  }
}

int64_t DataLoader::ReadPacked(const Source& source, int64_t row, int32_t* window) const {
  source.dataset.Read(row * options_.seq_len, options_.seq_len + 1, window);
  return options_.seq_len + 1;
}

int64_t DataLoader::ReadDocument(const Source& source, int64_t row, int32_t* window) const {
  const int64_t begin = source.row_starts[row], end = source.row_starts[row + 1];
  int64_t length = std::min(end - begin, options_.seq_len + 1);
  source.dataset.Read(begin, length, window);
  if (length <= options_.seq_len && window[length - 1] != options_.delimiter_id) {
    window[length++] = options_.delimiter_id;
  }
  return length;
}

void DataLoader::WriteRow(const int32_t* window, int64_t length, int32_t* tokens,
                          int32_t* targets) const {
  const int64_t predicted = length - 1;
  std::copy_n(window, predicted, tokens);
  std::fill(tokens + predicted, tokens + options_.seq_len, options_.pad_id);
  std::copy_n(window + 1, predicted, targets);
  std::fill(targets + predicted, targets + options_.seq_len, -1);
  if (options_.loss_after_token >= 0) {
    const int64_t separator =
        std::find(window, window + length, options_.loss_after_token) - window;
    std::fill_n(targets, std::min(separator, options_.seq_len), -1);
  }
}

std::string DataLoader::Describe() const {
  std::string text;
  for (const Source& source : sources_) {
    if (!text.empty()) text += "; ";
    text += source.dataset.glob() + ": " + std::to_string(source.dataset.size()) + " tokens in " +
            std::to_string(source.dataset.shards().size()) + " shards, " +
            std::to_string(source.samples) + " samples of " + std::to_string(options_.seq_len) +
            ", " + std::to_string(source.dropped_tokens) + " tokens dropped";
  }
  return text;
}

SampleRange PartitionSamples(int64_t count, int rank, int world_size) {
  CHECK(rank >= 0 && rank < world_size) << "rank " << rank << " of " << world_size;
  const int64_t each = count / world_size, extra = count % world_size;
  const int64_t begin = rank * each + std::min<int64_t>(rank, extra);
  return {begin, each + (rank < extra ? 1 : 0)};
}

Prefetcher::~Prefetcher() { Wait(); }

void Prefetcher::Wait() {
  if (thread_.joinable()) thread_.join();
}

void Prefetcher::Request(int64_t first_sample, int64_t count) {
  Wait();
  next_.first_sample = first_sample;
  next_.count = count;
  const size_t size = static_cast<size_t>(count * loader_->seq_len());
  next_.tokens.resize(size);
  next_.targets.resize(size);
  thread_ = std::thread([this] {
    loader_->ReadSamples(next_.first_sample, next_.count, next_.tokens.data(),
                         next_.targets.data());
  });
}

const SampleBatch& Prefetcher::Take(int64_t first_sample, int64_t count) {
  if (next_.first_sample != first_sample || next_.count != count) Request(first_sample, count);
  Wait();
  std::swap(taken_, next_);
  next_.first_sample = -1;  // handed out once: the buffer now holds an older batch
  return taken_;
}

}  // namespace filigree
