#include "trainer/checkpoint/soup.h"

#include <filesystem>
#include <memory>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;
using Readers = std::vector<std::unique_ptr<CheckpointReader>>;

Status CheckAlike(const CheckpointReader& first, const CheckpointReader& other) {
  const std::string both = first.directory() + " and " + other.directory();
  const std::vector<Parameter>&a = first.info().parameters, &b = other.info().parameters;
  if (first.info().model != other.info().model || a.size() != b.size()) {
    return InvalidInput(both + ": are of different models; average checkpoints of one model");
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].name != b[i].name) {
      return InvalidInput(both + ": parameter " + std::to_string(i) + " is " + a[i].name +
                          " in the first and " + b[i].name +
                          " in the second; average checkpoints of one model");
    }
    if (a[i].factor != FactorKind::kNone || b[i].factor != FactorKind::kNone) {
      return InvalidInput(both + ": " + a[i].name +
                          " is a low-rank factor, and the product of averages is no average; "
                          "export the models, import them and average what comes out");
    }
    if (a[i].layout == b[i].layout) continue;
    return InvalidInput(both + ": " + a[i].name +
                        " has different layouts; average models trained on from one pruned "
                        "parent with rule inherit");
  }
  return OkStatus();
}

StatusOr<std::vector<float>> MeanOf(const Readers& readers, int parameter) {
  std::vector<double> sum;
  for (const auto& reader : readers) {
    ASSIGN_OR_RETURN(const std::vector<float> values,
                     reader->ReadSegment(parameter, CheckpointArray::kMaster));
    sum.resize(values.size(), 0.0);
    for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
  }
  std::vector<float> mean(sum.size());
  const auto count = static_cast<double>(readers.size());
  for (size_t i = 0; i < sum.size(); ++i) mean[i] = static_cast<float>(sum[i] / count);
  return mean;
}

}  // namespace

Status AverageCheckpoints(std::span<const std::string> checkpoints, const std::string& out) {
  if (checkpoints.size() < 2) return InvalidInput("an average needs at least two checkpoints");
  Readers readers;
  for (const std::string& checkpoint : checkpoints) {
    ASSIGN_OR_RETURN(const std::string directory, ResolveCheckpoint(checkpoint));
    ASSIGN_OR_RETURN(auto reader, CheckpointReader::Open(directory));
    readers.push_back(std::move(reader));
    RETURN_IF_ERROR(CheckAlike(*readers.front(), *readers.back()));
  }
  std::error_code error;
  if (fs::exists(out, error) && !fs::is_empty(out, error)) {
    return InvalidInput(out + ": is there already; choose another --out, or remove it yourself");
  }
  const CheckpointReader& first = *readers.front();
  CheckpointInfo info;
  info.seed = first.info().seed;
  info.has_moments = false;
  info.model = first.info().model;
  info.parameters = first.info().parameters;
  ASSIGN_OR_RETURN(const auto writer,
                   CheckpointWriter::Begin(out, std::move(info), first.tokenizer_dir()));
  for (size_t i = 0; i < first.info().parameters.size(); ++i) {
    const int parameter = static_cast<int>(i);
    ASSIGN_OR_RETURN(const std::vector<float> mean, MeanOf(readers, parameter));
    RETURN_IF_ERROR(writer->Add(parameter, CheckpointArray::kMaster, mean));
  }
  return writer->Commit();
}

}  // namespace filigree
