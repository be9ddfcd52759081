#include "trainer/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/base/rng.h"
#include "trainer/batch_feeder.h"
#include "trainer/read_floats.h"

namespace filigree {

int64_t SampleIndex(std::span<const float> logits, const SamplingOptions& options, double uniform) {
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  int64_t kept = static_cast<int64_t>(logits.size());
  if (options.top_k > 0) kept = std::min(kept, options.top_k);
  if (options.temperature <= 0) kept = 1;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  if (kept == 1) return order[0];

  std::vector<double> cumulative(kept);
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) {
    const double gap = static_cast<double>(logits[order[i]]) - logits[order[0]];
    total += std::exp(gap / options.temperature);
    cumulative[i] = total;
  }
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * total);
  return order[std::min<int64_t>(found - cumulative.begin(), kept - 1)];
}

std::string Generate(Model& model, const Tokenizer& tokenizer, const std::string& prompt,
                     const SamplingOptions& options, Device& device, Stream& stream) {
  std::vector<int32_t> context = {tokenizer.delimiter_id()};
  for (int32_t id : tokenizer.Encode(prompt)) context.push_back(id);
  const int64_t most = options.max_context > 0 ? options.max_context : model.spec().max_positions;
  BatchFeeder feeder(device, 1, most);
  for (int64_t i = 0; i < options.tokens; ++i) {
    const int64_t length = std::min<int64_t>(most, static_cast<int64_t>(context.size()));
    const int32_t* window = context.data() + (static_cast<int64_t>(context.size()) - length);
    const MicroBatch batch = feeder.Feed(window, nullptr, 1, length, stream);
    ConstTensorView last = model.Logits(batch, stream).Rows(length - 1, 1);
    const std::vector<float> logits = ReadFloats(device, last, stream);
    const double uniform = RandomUniform(options.seed, RngStream("generate"), i);
    const auto next = static_cast<int32_t>(SampleIndex(logits, options, uniform));
    if (next == tokenizer.delimiter_id() || next == tokenizer.eos_id()) break;
    context.push_back(next);
  }
  return tokenizer.Decode(context);
}

}  // namespace filigree
