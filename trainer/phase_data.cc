#include "trainer/phase_data.h"

#include <utility>

namespace filigree {
namespace {

DataLoaderOptions LoaderOptions(const DataSpec& data, int64_t seq_len, int64_t vocab_size) {
  DataLoaderOptions options;
  if (data.bare_dtype == DataSpec::BareDtype::kU16) options.bare_dtype = DType::kU16;
  if (data.bare_dtype == DataSpec::BareDtype::kU32) options.bare_dtype = DType::kU32;
  options.seq_len = seq_len;
  options.vocab_size = vocab_size;
  options.layout = data.layout == DataSpec::Layout::kPacked ? SampleLayout::kPacked
                                                            : SampleLayout::kOneDocumentPerRow;
  options.delimiter_id = static_cast<int32_t>(data.delimiter_token);
  options.pad_id = static_cast<int32_t>(data.padding_token);
  options.loss_after_token = static_cast<int32_t>(data.loss_after_token);
  return options;
}

StatusOr<std::unique_ptr<DataLoader>> Open(DataLoaderOptions options) {
  ASSIGN_OR_RETURN(DataLoader loader, DataLoader::Open(std::move(options)));
  return std::make_unique<DataLoader>(std::move(loader));
}

}  // namespace

StatusOr<std::unique_ptr<DataLoader>> OpenValidation(const std::string& glob, const DataSpec& data,
                                                     int64_t seq_len, int64_t vocab_size) {
  DataLoaderOptions options = LoaderOptions(data, seq_len, vocab_size);
  options.sources = {{.glob = glob, .weight = 1}};
  options.shuffle = false;
  return Open(std::move(options));
}

StatusOr<PhaseData> OpenPhaseData(const PhaseSpec& phase, const ModelSpec& model, uint64_t seed) {
  PhaseData result;
  DataLoaderOptions options = LoaderOptions(phase.data, phase.batch.seq_len, model.vocab_size);
  for (const DataSourceSpec& source : phase.data.train) {
    options.sources.push_back({.glob = source.glob, .weight = source.weight});
  }
  options.seed = seed;
  options.shuffle = phase.data.shuffle;
  ASSIGN_OR_RETURN(result.train, Open(std::move(options)));
  if (!phase.data.validation.empty()) {
    ASSIGN_OR_RETURN(result.validation, OpenValidation(phase.data.validation, phase.data,
                                                       phase.batch.seq_len, model.vocab_size));
  }
  return result;
}

}  // namespace filigree
