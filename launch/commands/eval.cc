#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/commands/commands.h"
#include "launch/commands/session.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/evaluator.h"
#include "trainer/export/open_model.h"
#include "trainer/inference.h"
#include "trainer/phase_data.h"
#include "trainer/read_floats.h"
#include "trainer/tokenizer_match.h"

namespace filigree {
namespace {

constexpr int64_t kDefaultSeqLenCap = 1024;  // windows of models with very many positions

// Tokens and logits of the first window, for comparison with other implementations.
Status WriteLogits(const std::string& path, const DataLoader& data, Model& model,
                   BatchFeeder& feeder, Session& session) {
  const int64_t seq_len = data.seq_len(), vocab = model.spec().vocab_size;
  std::vector<int32_t> tokens(seq_len), targets(seq_len);
  data.ReadSamples(0, 1, tokens.data(), targets.data());
  const MicroBatch batch = feeder.Feed(tokens.data(), targets.data(), 1, seq_len, *session.stream);
  const std::vector<float> logits =
      ReadFloats(*session.device, model.Logits(batch, *session.stream), *session.stream);
  return WriteSafetensors(path, {{"tokens", DType::kI32, {seq_len}, tokens.data()},
                                 {"logits", DType::kF32, {seq_len, vocab}, logits.data()}});
}

DataSpec DataOf(const std::string& bare_dtype, int32_t delimiter_token) {
  DataSpec data;
  if (delimiter_token >= 0) data.layout = DataSpec::Layout::kOneDocumentPerRow;
  data.delimiter_token = data.padding_token = delimiter_token;
  if (bare_dtype == "U16") data.bare_dtype = DataSpec::BareDtype::kU16;
  if (bare_dtype == "U32") data.bare_dtype = DataSpec::BareDtype::kU32;
  return data;
}

void Print(const EvaluationResult& result, bool json) {
  if (json) {
    const nlohmann::json record = {
        {"loss", result.loss()}, {"perplexity", result.perplexity()}, {"tokens", result.tokens}};
    std::printf("%s\n", record.dump().c_str());
  } else {
    std::printf("loss %.6f nats a token, perplexity %.3f, over %lld tokens\n", result.loss(),
                result.perplexity(), static_cast<long long>(result.tokens));
  }
}

Status EvaluateAsRank(const EvalCommand& command, Session& session) {
  ASSIGN_OR_RETURN(const auto reader, OpenModel(command.what));
  const ModelSpec& spec = reader->info().model;
  const int64_t seq_len =
      command.seq_len > 0 ? command.seq_len : std::min(spec.max_positions, kDefaultSeqLenCap);
  if (seq_len > spec.max_positions) {
    return InvalidInput("--seq-len " + std::to_string(seq_len) + ": the model has " +
                        std::to_string(spec.max_positions) + " positions; give at most that");
  }
  RETURN_IF_ERROR(CheckTokenizerOfData(
      *reader, std::filesystem::absolute(command.data).parent_path().string()));
  const LossFormula formula =
      command.formula == "sltrain" ? LossFormula::kSltrain : LossFormula::kTokenMean;
  ASSIGN_OR_RETURN(const auto data,
                   OpenValidation(command.data, DataOf(command.bare_dtype, command.delimiter_token),
                                  seq_len, spec.vocab_size));
  ASSIGN_OR_RETURN(const auto loaded, InferenceModel::Load(*reader, command.sequences, seq_len,
                                                           *session.backend, *session.stream));
  BatchFeeder feeder(*session.device, command.sequences, seq_len);
  const EvaluationResult result =
      Evaluate(loaded->model(), *data, command.tokens, command.sequences, formula, feeder,
               *session.communicator, *session.stream);
  if (session.communicator->rank() != 0) return OkStatus();
  if (!command.logits.empty()) {
    RETURN_IF_ERROR(WriteLogits(command.logits, *data, loaded->model(), feeder, session));
  }
  Print(result, command.json);
  return OkStatus();
}

}  // namespace

Status EvalCommand::Run() const {
  ASSIGN_OR_RETURN(Session session, OpenSession({}));
  return ForThisRank(EvaluateAsRank(*this, session), session);
}

}  // namespace filigree
