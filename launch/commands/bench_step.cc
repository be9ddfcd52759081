#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/base/rng.h"
#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/session.h"
#include "trainer/metrics/numbers.h"
#include "trainer/peak_flops.h"
#include "trainer/schedule.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

// This rank's share of a step's tokens, drawn uniformly, all of them targets too.
struct RandomSamples {
  RandomSamples(const RunSpec& run, const Communicator& communicator, uint64_t step) {
    const BatchSpec& batch = run.phases.front().batch;
    const int64_t whole = batch.sequences_per_step();
    const int64_t size = communicator.size(), rank = communicator.rank();
    sequences = whole * (rank + 1) / size - whole * rank / size;
    for (int64_t i = 0; i < sequences * batch.seq_len; ++i) {
      const auto draw = [&](std::string_view purpose) {
        return static_cast<int32_t>(RandomBelow(run.seed, RngStream("bench", purpose, step),
                                                i + (rank << 40), run.model.vocab_size));
      };
      tokens.push_back(draw("tokens"));
      targets.push_back(draw("targets"));
    }
    valid_tokens = static_cast<double>(batch.tokens_per_step);
  }
  StepSamples view() const { return {tokens.data(), targets.data(), sequences, valid_tokens}; }

  std::vector<int32_t> tokens, targets;
  int64_t sequences = 0;
  double valid_tokens = 0;
};

struct Timing {
  std::vector<double> ms;
  int64_t exchanged_bytes = 0;
  double first_loss = 0, last_loss = 0;  // of this rank's share

  double Median() const {
    std::vector<double> sorted = ms;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

// Times whole steps, host included, from one finished step to the next.
Timing TimeSteps(const BenchStepCommand& command, const RunSpec& run, TrainingState& state,
                 Session& session) {
  const PhaseSpec& phase = run.phases.front();
  TrainStep step(phase.batch, *session.backend, *session.stream);
  // A few sets of tokens take turns: drawing them is not what is measured.
  std::vector<RandomSamples> sets;
  for (uint64_t i = 0; i < 4; ++i) sets.emplace_back(run, *session.communicator, i);
  Timing timing;
  for (int i = 0; i < command.warmup + command.steps; ++i) {
    session.communicator->Barrier();
    const auto begin = std::chrono::steady_clock::now();
    const StepResult result = step.Run(state, sets[i % sets.size()].view(), phase.optimizer,
                                       LearningRate(phase.schedule, i, phase.steps), i + 1);
    session.stream->Synchronize();
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - begin;
    timing.last_loss = result.loss_sum * session.communicator->size() / sets[0].valid_tokens;
    if (i == 0) timing.first_loss = timing.last_loss;
    timing.exchanged_bytes = state.exchange().TakeBytes().total();
    if (i >= command.warmup) timing.ms.push_back(elapsed.count());
  }
  return timing;
}

nlohmann::json ToJson(const RunSpec& run, const Timing& timing, const Model& model,
                      const Session& session, double peak_flops) {
  const BatchSpec& batch = run.phases.front().batch;
  const double seconds = timing.Median() / 1e3;
  const double tokens = static_cast<double>(batch.tokens_per_step);
  const LinearFlops flops = ForwardFlopsPerToken(model, batch.seq_len);
  const double ranks = session.communicator->size();
  const auto mfu = [&](double forward_flops) {
    return 3 * forward_flops * tokens / seconds / (peak_flops * ranks);
  };
  const MemoryUsage memory = session.device->memory_usage();
  return {{"name", run.name},
          {"ranks", session.communicator->size()},
          {"tokens_per_step", batch.tokens_per_step},
          {"step_ms", timing.Median()},
          {"samples", timing.ms},
          {"tokens_per_second", tokens / seconds},
          {"mfu_dense_equivalent", mfu(flops.dense_equivalent)},
          {"mfu_executed", mfu(flops.executed)},
          {"exchanged_bytes", timing.exchanged_bytes},
          {"memory_bytes", memory.bytes_by_kind},
          {"memory_peak_bytes", memory.peak_bytes},
          {"first_loss", timing.first_loss},
          {"last_loss", timing.last_loss}};
}

void Print(const nlohmann::json& r) {
  std::printf("%s on %d rank(s): %.2f ms a step (median of %zu), %.0f tokens a second\n",
              r["name"].get<std::string>().c_str(), r["ranks"].get<int>(),
              r["step_ms"].get<double>(), r["samples"].size(),
              r["tokens_per_second"].get<double>());
  std::printf(
      "MFU %.1f %% dense-equivalent, %.1f %% executed; peak memory %.2f GB; %.1f MB exchanged"
      " a step; loss %.3f -> %.3f\n",
      100 * r["mfu_dense_equivalent"].get<double>(), 100 * r["mfu_executed"].get<double>(),
      r["memory_peak_bytes"].get<double>() / 1e9, r["exchanged_bytes"].get<double>() / 1e6,
      r["first_loss"].get<double>(), r["last_loss"].get<double>());
}

}  // namespace

namespace {

// The first phase is long enough for what is timed: its schedule gives the learning rates.
Status CheckLength(const BenchStepCommand& command, const RunSpec& run) {
  const int64_t wanted = int64_t{command.warmup} + command.steps;
  const PhaseSpec& phase = run.phases.front();
  if (wanted <= phase.steps) return OkStatus();
  return InvalidInput(command.config + ": phase " + phase.name + " has " +
                      std::to_string(phase.steps) + " steps, --warmup and --steps ask for " +
                      std::to_string(wanted) + "; lower them or lengthen the phase");
}

}  // namespace

Status BenchStepCommand::Run() const {
  const auto loaded = LoadCheckedConfig(config, overrides);
  const Status checked = loaded.ok() ? CheckLength(*this, loaded->spec) : loaded.status();
  ASSIGN_OR_RETURN(Session session,
                   OpenSession(checked.ok() ? SessionOptionsOf(loaded->spec) : kNoCompute));
  if (!checked.ok()) return ForThisRank(checked, session);
  const RunSpec& run = loaded->spec;
  const double peak = run.peak_tflops > 0 ? run.peak_tflops * 1e12 : PeakFlops(*session.backend);
  TrainingState state(run, 0, {}, *session.communicator, *session.backend, *session.stream);
  state.InitializeValues(*session.stream);
  const Timing timing = TimeSteps(*this, run, state, session);
  if (session.communicator->rank() != 0) return OkStatus();
  const nlohmann::json result = ToJson(run, timing, state.model(), session, peak);
  json ? void(std::printf("%s\n", result.dump().c_str())) : Print(result);
  return OkStatus();
}

}  // namespace filigree
