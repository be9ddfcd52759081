#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "comm/link_model.h"
#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "kernels/base/progress.h"
#include "launch/commands/commands.h"
#include "launch/commands/load_config.h"
#include "launch/commands/session.h"
#include "trainer/metrics/numbers.h"
#include "trainer/model/model.h"
#include "trainer/planner.h"
#include "trainer/state_layout.h"

namespace filigree {
namespace {

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds that `work` takes, from a barrier to its end on the slowest rank; a median.
template <typename Function>
double MedianSeconds(int warmup, int repeats, Session& session, const Function& work) {
  std::vector<double> seconds;
  for (int i = 0; i < warmup + repeats; ++i) {
    session.communicator->Barrier();
    const auto begin = std::chrono::steady_clock::now();
    work();
    session.stream->Synchronize();
    double elapsed =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    session.communicator->AllReduceHost(std::span<double>(&elapsed, 1), ReduceOp::kMax);
    if (i >= warmup) seconds.push_back(elapsed);
    ReportProgress();
  }
  return Median(seconds);
}

// The flat state of a run's first phase and its exchange; no activations, no layouts on the device.
class Replay {
 public:
  Replay(const RunSpec& run, Session& session)
      : session_(session),
        model_(
            Model::Create(run.model, run.phases.front().sparsity, run.seed, {}, *session.backend)),
        buffer_(MakeFlatBuffer(model_->parameters(), run, /*phase=*/0, *session.communicator,
                               *session.device, *session.stream)),
        exchange_(buffer_, *session.communicator, WireOf(run, *session.backend)),
        ready_(session.device->NewEvent()),
        norm_(session.device->Allocate(sizeof(double), "scratch")) {
    session.device->ZeroAsync(norm_.View(DType::kF64, 1), *session.stream);
    ready_->Record(*session.stream);
  }

  const FlatLayout& layout() const { return buffer_.layout(); }
  const std::vector<Parameter>& parameters() const { return model_->parameters(); }

  // What one step of the trainer sends, in its order.
  void Step() {
    Communicator& ranks = *session_.communicator;
    double counted[] = {0, 0}, loss = 0;
    ranks.AllReduceHost(counted, ReduceOp::kSum);
    for (auto i = static_cast<int>(parameters().size()) - 1; i >= 0; --i) {
      exchange_.MarkReady(i, *ready_);
    }
    exchange_.EndBackward();
    exchange_.WaitGrads(*session_.stream);
    exchange_.SumOverShards(norm_.View(DType::kF64, 1), *session_.stream);
    exchange_.StartGatherValues(*ready_);
    session_.stream->Synchronize();  // the host learns the norm
    exchange_.WaitAllValues(*session_.stream);
    ranks.AllReduceHost(std::span<double>(&loss, 1), ReduceOp::kSum);
    exchange_.CountControl(sizeof(counted) + sizeof(loss));
    bytes_ = exchange_.TakeBytes();
  }
  const ExchangedBytes& bytes() const { return bytes_; }

  // The buckets of one kind alone: gradients, then ZeRO-1's values.
  void ExchangeKind(TrafficKind kind) {
    const std::vector<Bucket>& buckets = layout().buckets();
    std::vector<std::unique_ptr<Work>> works;
    const auto all = [&](const auto& start) {
      for (size_t i = 0; i < buckets.size(); ++i) {
        if (buckets[i].kind == kind) works.push_back(start(static_cast<int>(i)));
      }
      for (const auto& work : works) work->Wait(*session_.stream);
      works.clear();
      session_.stream->Synchronize();
    };
    all([&](int i) { return exchange_.Reduce(i, *ready_); });
    if (layout().shards() == 1) return;
    all([&](int i) { return Start(Collective::kAllGather, buckets[i].offset, buckets[i].count); });
  }

  // One collective over the first `count` elements, a multiple of the number of ranks.
  void Run(Collective collective, int64_t count) {
    Start(collective, 0, count)->Wait(*session_.stream);
  }
  int64_t ElementBytes(Collective collective) const {
    return static_cast<int64_t>(SizeOf(ArrayOf(collective).dtype()));
  }

 private:
  TensorView ArrayOf(Collective collective) const {
    return collective == Collective::kAllGather ? buffer_.values() : exchange_.summed_grads();
  }

  std::unique_ptr<Work> Start(Collective collective, int64_t offset, int64_t count) {
    Communicator& ranks = *session_.communicator;
    const TensorView whole = ArrayOf(collective).Range(offset, count);
    const int64_t slice = count / ranks.size();
    const TensorView own = whole.Range(slice * ranks.rank(), slice);
    switch (collective) {
      case Collective::kAllReduce:
        return ranks.AllReduce(whole, ReduceOp::kSum, *ready_);
      case Collective::kReduceScatter:
        return exchange_.ReduceScatter(whole, own, *ready_);
      case Collective::kAllGather:
        return ranks.AllGather(own, whole, *ready_);
    }
    CHECK(false) << "collective " << static_cast<int>(collective);
  }

  Session& session_;
  std::unique_ptr<Model> model_;
  FlatBuffer buffer_;
  GradientExchange exchange_;
  std::unique_ptr<Event> ready_;
  DeviceBuffer norm_;
  ExchangedBytes bytes_;
};

const char* NameOf(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllGather:
      return "all_gather";
  }
  return "";
}

// Element counts to time: at most eight of the run's own, and small ones, which show the latency.
std::vector<int64_t> CountsOf(const FlatLayout& layout, int ranks) {
  constexpr size_t kMostSizes = 8;
  std::set<int64_t> own, counts;
  int64_t largest = 0;
  for (const Bucket& bucket : layout.buckets()) {
    own.insert(AlignUp(bucket.count, ranks));
    largest = std::max(largest, bucket.count);
  }
  const std::vector<int64_t> sorted(own.begin(), own.end());
  const size_t some = std::min(sorted.size(), kMostSizes);
  for (size_t i = 0; i < some; ++i) {
    counts.insert(sorted[some == 1 ? 0 : i * (sorted.size() - 1) / (some - 1)]);
  }
  for (int64_t count = 1024; count < largest; count *= 16) counts.insert(AlignUp(count, ranks));
  std::vector<int64_t> fit;
  for (int64_t count : counts) {
    if (count <= layout.total_count()) fit.push_back(count);
  }
  return fit;
}

// Every size by every collective that the run uses.
std::vector<CollectiveTiming> TimeCollectives(const BenchExchangeCommand& command, Replay& replay,
                                              Session& session) {
  std::vector<Collective> used = {Collective::kAllReduce};
  if (replay.layout().shards() > 1) used = {Collective::kReduceScatter, Collective::kAllGather};
  std::vector<CollectiveTiming> timings;
  for (Collective collective : used) {
    for (int64_t count : CountsOf(replay.layout(), session.communicator->size())) {
      const double seconds = MedianSeconds(command.warmup, command.steps, session,
                                           [&] { replay.Run(collective, count); });
      timings.push_back({.collective = collective,
                         .bytes = static_cast<double>(count * replay.ElementBytes(collective)),
                         .seconds = seconds});
    }
  }
  return timings;
}

// effective: payload over time. bus: what each rank sends over time, to be held against a link's
// rate.
nlohmann::json ToJson(const CollectiveTiming& timing, int ranks) {
  const double passes = timing.collective == Collective::kAllReduce ? 2 : 1;
  const double effective = timing.bytes / timing.seconds;
  return {{"collective", NameOf(timing.collective)},
          {"bytes", timing.bytes},
          {"ms", 1e3 * timing.seconds},
          {"effective_bytes_per_second", effective},
          {"bus_bytes_per_second", effective * passes * (ranks - 1) / ranks}};
}

nlohmann::json ToJson(const ExchangedBytes& bytes) {
  return {{"sparsified_grads", bytes.sparsified_grads},
          {"dense_grads", bytes.dense_grads},
          {"sparsified_values", bytes.sparsified_values},
          {"dense_values", bytes.dense_values},
          {"control", bytes.control},
          {"total", bytes.total()}};
}

// The fit, and what to tell `plan` of it. Where several ranks share a host, a hop is on average
// what is fitted, and one host's links together carry the ring.
nlohmann::json FitJson(const std::vector<CollectiveTiming>& timings,
                       const Communicator& communicator) {
  const int ranks = communicator.size(), local = communicator.local_size();
  const RingFit fit = FitRing(timings, ranks);
  const double gbps = fit.bytes_per_second * 8 / 1e9, us = fit.hop_seconds * 1e6;
  char text[160];
  if (local == ranks) {
    std::snprintf(text, sizeof(text), "--node-gbps %.4g --node-latency-us %.4g", gbps, us);
  } else {
    std::snprintf(text, sizeof(text),
                  "--link-gbps %.4g --link-latency-us %.4g --node-latency-us %.4g "
                  "--gpus-per-node %d",
                  gbps / local, us, us, local);
  }
  return {{"latency_seconds", fit.hop_seconds},
          {"bandwidth_bytes_per_second", fit.bytes_per_second},
          {"worst_relative_error", fit.worst_error},
          {"plan_options", text}};
}

void Print(const nlohmann::json& r) {
  const auto size = [](const nlohmann::json& bytes) { return FormatBytes(bytes.get<double>()); };
  std::printf("%s on %d ranks, %d of them on this host: %.3f ms a step of exchange, %s\n",
              r["name"].get<std::string>().c_str(), r["ranks"].get<int>(),
              r["local_ranks"].get<int>(), r["step_ms"].get<double>(),
              size(r["exchanged_bytes"]["total"]).c_str());
  for (const auto& [kind, bytes] : r["exchanged_bytes"].items()) {
    if (kind != "total") std::printf("  %-18s %12s\n", kind.c_str(), size(bytes).c_str());
  }
  std::printf("  alone: sparsified buckets %.3f ms, dense buckets %.3f ms\n",
              r["sparsified_ms"].get<double>(), r["dense_ms"].get<double>());
  std::printf("  %-14s %10s %10s %14s %14s\n", "collective", "payload", "ms", "effective/s",
              "bus/s");
  for (const nlohmann::json& c : r["collectives"]) {
    std::printf("  %-14s %10s %10.3f %14s %14s\n", c["collective"].get<std::string>().c_str(),
                size(c["bytes"]).c_str(), c["ms"].get<double>(),
                size(c["effective_bytes_per_second"]).c_str(),
                size(c["bus_bytes_per_second"]).c_str());
  }
  const nlohmann::json& fit = r["fit"];
  std::printf(
      "ring: %.2f us a hop, %s/s (at worst %.0f %% off a timing)\nfor `filigree plan`: %s\n",
      1e6 * fit["latency_seconds"].get<double>(), size(fit["bandwidth_bytes_per_second"]).c_str(),
      100 * fit["worst_relative_error"].get<double>(),
      fit["plan_options"].get<std::string>().c_str());
}

}  // namespace

Status BenchExchangeCommand::Run() const {
  auto loaded = LoadCheckedConfig(config, overrides);
  ASSIGN_OR_RETURN(Session session,
                   OpenSession(loaded.ok() ? SessionOptionsOf(loaded->spec) : kNoCompute));
  if (!loaded.ok()) return ForThisRank(loaded.status(), session);
  RunSpec& run = loaded->spec;
  // All buckets travel one after the other, so that all gradients have memory.
  run.phases.front().optimizer.per_layer = false;
  const int ranks = session.communicator->size();
  if (ranks == 1) {
    return InvalidInput(
        "one rank exchanges nothing; start several, as `mpirun -np 2 filigree bench "
        "exchange ...`");
  }
  Replay replay(run, session);
  const double step = MedianSeconds(warmup, steps, session, [&] { replay.Step(); });
  const auto kind_ms = [&](TrafficKind kind) {
    return 1e3 * MedianSeconds(warmup, steps, session, [&] { replay.ExchangeKind(kind); });
  };
  const double sparsified_ms = kind_ms(TrafficKind::kSparsified);
  const double dense_ms = kind_ms(TrafficKind::kDense);
  const std::vector<CollectiveTiming> timings = TimeCollectives(*this, replay, session);
  if (session.communicator->rank() != 0) return OkStatus();
  nlohmann::json result = {{"name", run.name},
                           {"ranks", ranks},
                           {"local_ranks", session.communicator->local_size()},
                           {"device", std::string(session.device->name())},
                           {"zero_stage", run.zero_stage},
                           {"step_ms", 1e3 * step},
                           {"sparsified_ms", sparsified_ms},
                           {"dense_ms", dense_ms},
                           {"steps", steps},
                           {"buckets", replay.layout().buckets().size()},
                           {"exchanged_bytes", ToJson(replay.bytes())},
                           {"fit", FitJson(timings, *session.communicator)}};
  for (const CollectiveTiming& timing : timings) {
    result["collectives"].push_back(ToJson(timing, ranks));
  }
  json ? void(std::printf("%s\n", result.dump().c_str())) : Print(result);
  return OkStatus();
}

}  // namespace filigree
