#include <algorithm>
#include <cstdio>

#include "launch/commands/commands.h"
#include "launch/commands/session.h"
#include "trainer/export/open_model.h"
#include "trainer/generator.h"
#include "trainer/inference.h"

namespace filigree {

namespace {

Status GenerateAsRank(const GenerateCommand& command, Session& session) {
  ASSIGN_OR_RETURN(const auto reader, OpenModel(command.what));
  if (reader->tokenizer_dir().empty()) {
    return InvalidInput(command.what +
                        ": has no tokenizer; train with data.prepared set, or export from a run "
                        "that was");
  }
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(reader->tokenizer_dir()));
  SamplingOptions options;
  options.tokens = command.tokens;
  options.seed = command.seed;
  options.temperature = command.temperature;
  options.top_k = command.top_k;
  const auto prompt_tokens = static_cast<int64_t>(tokenizer->Encode(command.prompt).size()) + 1;
  options.max_context =
      std::min(reader->info().model.max_positions, prompt_tokens + command.tokens);
  ASSIGN_OR_RETURN(const auto loaded, InferenceModel::Load(*reader, 1, options.max_context,
                                                           *session.backend, *session.stream));
  const std::string text = Generate(loaded->model(), *tokenizer, command.prompt, options,
                                    *session.device, *session.stream);
  if (session.communicator->rank() == 0) std::printf("%s\n", text.c_str());
  return OkStatus();
}

}  // namespace

Status GenerateCommand::Run() const {
  ASSIGN_OR_RETURN(Session session, OpenSession({}));
  return ForThisRank(GenerateAsRank(*this, session), session);
}

}  // namespace filigree
