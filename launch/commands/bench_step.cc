#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/base/rng.h"
#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/session.h"
#include "launch/commands/sparsified_report.h"
#include "trainer/metrics/numbers.h"
#include "trainer/micro_batches.h"
#include "trainer/peak_flops.h"
#include "trainer/pruner.h"
#include "trainer/run_inputs.h"
#include "trainer/sample_tree.h"
#include "trainer/schedule.h"
#include "trainer/teacher.h"
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

// Of the exchange, in milliseconds a step; of the rank that has most. GPUs differ, and the quicker
// ones wait for the slowest: what that one waits is the exchange's own share.
struct ExchangeTiming {
  double exposed_least = 0;                      // of the rank that has least
  double alone = 0;                              // with nothing beside it
  double exposed_grads = 0, exposed_values = 0;  // compute stood still
  double exposed() const { return exposed_grads + exposed_values; }
  double hidden_share() const { return std::max(0.0, 1 - exposed() / alone); }
};

struct Timing {
  std::vector<double> ms;
  std::vector<double> saliency_ms;  // after each of them, where the phase prunes
  ExchangeTiming exchange;
  int64_t exchanged_bytes = 0, bytes_in_use = 0;
  int64_t replays = 0;                   // passes that came from a recording, warm-up included
  double first_loss = 0, last_loss = 0;  // of this rank's share

  double Median() const { return MedianOf(ms); }
  static double MedianOf(std::vector<double> sorted) {
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

// What pruning adds to every step of a phase that prunes, removals left out: saliency is read from
// the step's gradients.
class SaliencyTimer {
 public:
  SaliencyTimer(const RunSpec& run, TrainingState& state, Session& session)
      : run_(run),
        state_(state),
        session_(session),
        pruner_(run, *session.communicator, *session.backend) {
    pruner_.BeginPhase(0);
  }
  // Milliseconds, or less than 0 where the phase does not prune.
  double Time() {
    if (!pruner_.active()) return -1;
    const auto begin = std::chrono::steady_clock::now();
    pruner_.AfterStep(state_, run_.phases.front().steps, /*skipped=*/false, *session_.stream);
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - begin;
    return elapsed.count();
  }

 private:
  const RunSpec& run_;
  TrainingState& state_;
  Session& session_;
  Pruner pruner_;
};

// The step's collectives one after the other, from a common start.
double ExchangeAlone(int warmup, int repeats, TrainingState& state, Session& session) {
  GradientExchange& exchange = state.exchange();
  exchange.WaitAllValues(*session.stream);
  const std::unique_ptr<Event> ready = session.device->NewEvent();
  ready->Record(*session.stream);
  std::vector<double> ms;
  for (int i = 0; i < warmup + repeats; ++i) {
    session.stream->Synchronize();
    session.communicator->Barrier();
    const auto begin = std::chrono::steady_clock::now();
    for (auto p = static_cast<int>(state.parameters().size()) - 1; p >= 0; --p) {
      exchange.MarkReady(p, *ready);
    }
    exchange.EndBackward();
    exchange.WaitGrads(*session.stream);
    exchange.StartGatherValues(*ready);
    exchange.WaitAllValues(*session.stream);
    session.stream->Synchronize();
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - begin;
    if (i >= warmup) ms.push_back(elapsed.count());
  }
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}

// Times whole steps, host included, from one finished step to the next.
Timing TimeSteps(const BenchStepCommand& command, const RunSpec& run, TrainingState& state,
                 Teacher* teacher, Session& session) {
  const PhaseSpec& phase = run.phases.front();
  TrainStep step(phase.batch, *session.backend, *session.stream);
  step.set_teacher(teacher, phase.distillation);
  if (SumsInTree(run, *session.device)) step.SumInTree(*session.communicator);
  if (ReplaysPasses(run.graphs, phase.batch, state.model(), *session.device)) step.ReplayPasses();
  // A few sets of tokens take turns: drawing them is not what is measured.
  std::vector<RandomSamples> sets;
  for (uint64_t i = 0; i < 4; ++i) sets.emplace_back(run, *session.communicator, i);
  Timing timing;
  SaliencyTimer saliency(run, state, session);
  StallTimer stalls(*session.device);
  state.exchange().set_stall_timer(&stalls);
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
    timing.bytes_in_use = std::max(timing.bytes_in_use, BytesInUse(session));
    const StallTimer::Stalls stalled = stalls.Take();
    const double saliency_ms = saliency.Time();
    if (i < command.warmup) continue;
    timing.ms.push_back(elapsed.count());
    if (saliency_ms >= 0) timing.saliency_ms.push_back(saliency_ms);
    timing.exchange.exposed_grads += stalled.grads_ms / command.steps;
    timing.exchange.exposed_values += stalled.values_ms / command.steps;
  }
  timing.replays = step.replays();
  state.exchange().set_stall_timer(nullptr);
  if (session.communicator->size() == 1) return timing;
  timing.exchange.alone = ExchangeAlone(command.warmup, command.steps, state, session);
  double slowest[] = {timing.exchange.alone, timing.exchange.exposed_grads,
                      timing.exchange.exposed_values};
  session.communicator->AllReduceHost(slowest, ReduceOp::kMax);
  double least = timing.exchange.exposed();
  session.communicator->AllReduceHost(std::span<double>(&least, 1), ReduceOp::kMin);
  timing.exchange = {.exposed_least = least,
                     .alone = slowest[0],
                     .exposed_grads = slowest[1],
                     .exposed_values = slowest[2]};
  return timing;
}

nlohmann::json ToJson(const RunSpec& run, const Timing& timing, const Model& model,
                      const Session& session, PeakFlops peak) {
  const BatchSpec& batch = run.phases.front().batch;
  const double seconds = timing.Median() / 1e3;
  const double tokens = static_cast<double>(batch.tokens_per_step);
  const LinearFlops flops = ForwardFlopsPerToken(model, batch.seq_len);
  const double passes_per_second = LinearFlops::kPasses * tokens / seconds;
  peak.Reached(flops.executed * passes_per_second);
  const auto mfu = [&](double forward_flops) -> nlohmann::json {
    const std::optional<double> share = peak.Share(forward_flops * passes_per_second);
    return share ? nlohmann::json(*share) : nlohmann::json();
  };
  const MemoryUsage memory = session.device->memory_usage();
  nlohmann::json result = {{"name", run.name},
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
                           {"device_bytes_in_use", timing.bytes_in_use},
                           {"replayed_passes", timing.replays},
                           {"first_loss", timing.first_loss},
                           {"last_loss", timing.last_loss}};
  if (!timing.saliency_ms.empty()) {
    result["saliency_ms"] = Timing::MedianOf(timing.saliency_ms);
  }
  if (session.communicator->size() > 1) {
    result["exchange"] = {{"alone_ms", timing.exchange.alone},
                          {"exposed_grads_ms", timing.exchange.exposed_grads},
                          {"exposed_values_ms", timing.exchange.exposed_values},
                          {"exposed_least_ms", timing.exchange.exposed_least},
                          {"hidden_share", timing.exchange.hidden_share()}};
  }
  return result;
}

void Print(const nlohmann::json& r) {
  std::printf("%s on %d rank(s): %.2f ms a step (median of %zu), %.0f tokens a second\n",
              r["name"].get<std::string>().c_str(), r["ranks"].get<int>(),
              r["step_ms"].get<double>(), r["samples"].size(),
              r["tokens_per_second"].get<double>());
  const auto percent = [&](const char* name) {
    return r[name].is_null() ? "n/a" : FormatPercent(r[name].get<double>());
  };
  std::printf(
      "MFU %s dense-equivalent, %s executed; peak memory %.2f GB (%.2f GB in use on the"
      " device); %.1f MB exchanged a step; loss %.3f -> %.3f\n",
      percent("mfu_dense_equivalent").c_str(), percent("mfu_executed").c_str(),
      r["memory_peak_bytes"].get<double>() / 1e9, r["device_bytes_in_use"].get<double>() / 1e9,
      r["exchanged_bytes"].get<double>() / 1e6, r["first_loss"].get<double>(),
      r["last_loss"].get<double>());
  if (const auto replays = r["replayed_passes"].get<int64_t>(); replays > 0) {
    std::printf("%ld passes came from recordings\n", static_cast<long>(replays));
  }
  if (r.contains("saliency_ms")) {
    const double step = r["step_ms"].get<double>(), saliency = r["saliency_ms"].get<double>();
    std::printf("saliency for pruning: %.2f ms more after each step, %.2f %%\n", saliency,
                100 * saliency / step);
  }
  if (!r.contains("exchange")) return;
  const nlohmann::json& e = r["exchange"];
  std::printf(
      "exchange: %.2f ms alone; compute stood still %.2f ms for gradients and %.2f ms for values a "
      "step (%.2f ms on the rank that waits least): %.1f %% hidden\n",
      e["alone_ms"].get<double>(), e["exposed_grads_ms"].get<double>(),
      e["exposed_values_ms"].get<double>(), e["exposed_least_ms"].get<double>(),
      100 * e["hidden_share"].get<double>());
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
  const RunSpec run = WithMicroBatchesOf(session.communicator->size(), loaded->spec);
  if (const Status fits = CheckDevice(run, *session.device); !fits.ok()) {
    return ForThisRank(fits, session);
  }
  session.backend->set_deterministic(run.deterministic);
  StatusOr<std::unique_ptr<Teacher>> teacher = std::unique_ptr<Teacher>();  // none
  if (run.phases.front().distillation.on()) {
    Status known = OpenTeachers(run).status();
    if (known.ok()) {
      teacher = Teacher::Load(run.phases.front(), *session.backend, *session.stream);
      known = teacher.status();
    }
    if (!known.ok()) return ForThisRank(known, session);
  }
  const PeakFlops peak = PeakFlops::Of(*session.backend, run.peak_tflops * 1e12,
                                       session.communicator->size());
  TrainingState state(run, 0, {}, *session.communicator, *session.backend, *session.stream);
  state.InitializeValues(*session.stream);
  const Timing timing = TimeSteps(*this, run, state, teacher->get(), session);
  if (session.communicator->rank() != 0) return OkStatus();
  nlohmann::json result = ToJson(run, timing, state.model(), session, peak);
  const SparsifiedMemory sparsified =
      CountSparsifiedMemory(state, run, session.communicator->size(), *session.device);
  result["sparsified_memory_bytes"] = ToJson(sparsified);
  if (json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    Print(result);
    PrintSparsified(sparsified);
  }
  return OkStatus();
}

}  // namespace filigree
