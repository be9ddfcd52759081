// `filigree bench kernels`: a line for each shape, block and sparsity and each of the three
// products.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/math.h"
#include "launch/commands/commands.h"
#include "launch/commands/kernel_peers.h"
#include "launch/commands/kernel_roof.h"
#include "launch/commands/kernel_timing.h"
#include "launch/commands/session.h"
#ifdef FILIGREE_HAS_CUDA
#include "kernels/cuda/l2_bandwidth_sm90.h"
#endif

namespace filigree {
namespace {

// "4096x1024" as {4096, 1024}.
StatusOr<std::pair<int64_t, int64_t>> ParsePair(const std::string& option,
                                                const std::string& text) {
  long long first = 0, second = 0;
  char rest = 0;
  if (std::sscanf(text.c_str(), "%lldx%lld%c", &first, &second, &rest) == 2 && first > 0 &&
      second > 0 && first < (1 << 24) && second < (1 << 24)) {
    return std::pair<int64_t, int64_t>(first, second);
  }
  return InvalidInput(option + " " + text + ": give two positive numbers, as in 4096x1024");
}

StatusOr<std::vector<KernelCase>> CasesOf(const BenchKernelsCommand& command) {
  std::vector<KernelCase> cases;
  for (const std::string& block_text : command.blocks) {
    ASSIGN_OR_RETURN(const auto block, ParsePair("--block", block_text));
    for (double sparsity : command.sparsities) {
      for (int64_t tokens : command.tokens) {
        for (const std::string& shape_text : command.shapes) {
          ASSIGN_OR_RETURN(const auto shape, ParsePair("--shape", shape_text));
          if (block.first > shape.first || block.second > shape.second) {
            return InvalidInput("--block " + block_text + " is larger than --shape " + shape_text);
          }
          cases.push_back({.out = shape.first,
                           .in = shape.second,
                           .block_out = static_cast<int>(block.first),
                           .block_in = static_cast<int>(block.second),
                           .density = 1 - sparsity / 100,
                           .balanced = command.layout == "balanced",
                           .tokens = tokens,
                           .seed = command.seed});
        }
      }
    }
  }
  return cases;
}

DeviceRates MeasureRates(Session& session) {
  DeviceRates rates = {.memory = MeasureMemoryBandwidth(*session.backend, *session.stream)};
#ifdef FILIGREE_HAS_CUDA
  if (session.device->name() == "cuda") rates.l2_to_shared = MeasureL2ToSharedBandwidth();
#endif
  return rates;
}

nlohmann::json ToJson(const KernelCase& c, const KernelTimes& times, int product,
                      const DeviceRates& rates, const BenchKernelsCommand& command) {
  const double ours = times.ours[product], flops = times.ProductFlops(c.tokens);
  const KernelRoof roof = RoofOf(product, c, times, rates);
  return {{"shape", std::to_string(c.out) + "x" + std::to_string(c.in)},
          {"block", std::to_string(c.block_out) + "x" + std::to_string(c.block_in)},
          {"sparsity", std::round((1 - c.density) * 1e6) / 1e4},
          {"layout", command.layout},
          {"seed", c.seed},
          {"tokens", c.tokens},
          {"product", kProductNames[product]},
          {"ours_ms", ours},
          {"dense_ms", times.dense[product]},
          {"equal_ms", times.equal[product]},
          {"executed_tflops", flops * (product == 3 ? 3 : 1) / ours / 1e9},
          {"roof_ms", roof.ms},
          {"bound", roof.bound},
          {"samples", command.repeats}};
}

void PrintHeader(const DeviceRates& rates) {
  std::printf("measured here: device memory %.2f TB/s", rates.memory / 1e12);
  if (rates.l2_to_shared > 0) std::printf(", L2 to shared %.2f TB/s", rates.l2_to_shared / 1e12);
  std::printf("\n%-11s %-8s %5s %6s %-11s %9s %8s %9s %9s %7s %7s %9s %-7s\n", "out x in", "block",
              "%", "tokens", "product", "us", "TFLOP/s", "dense us", "equal us", "x dense",
              "x equal", "roof us", "bound");
}

void Print(const nlohmann::json& r) {
  const double ours = r["ours_ms"], dense = r["dense_ms"], equal = r["equal_ms"];
  std::printf(
      "%-11s %-8s %5.4g %6ld %-11s %9.1f %8.1f %9.1f %9.1f %7.2f %7.2f %9.1f %-7s\n",
      r["shape"].get<std::string>().c_str(), r["block"].get<std::string>().c_str(),
      r["sparsity"].get<double>(), r["tokens"].get<long>(), r["product"].get<std::string>().c_str(),
      ours * 1e3, r["executed_tflops"].get<double>(), dense * 1e3, equal * 1e3, dense / ours,
      equal / ours, r["roof_ms"].get<double>() * 1e3, r["bound"].get<std::string>().c_str());
  std::fflush(stdout);
}

// Adds "NAME_ms" of each peer to a product's record; null: it has no such product.
void AddPeers(const std::vector<KernelPeer>& peers, int product, nlohmann::json* record) {
  for (const KernelPeer& peer : peers) {
    nlohmann::json& ms = (*record)[peer.name + "_ms"];
    if (peer.ms[product]) ms = *peer.ms[product];
  }
}

// A line a peer, in the columns of Print: its time, its rate, and how its times stand to the
// others.
void PrintPeers(const std::vector<KernelPeer>& peers, const KernelTimes& times, int product,
                int64_t tokens) {
  for (const KernelPeer& peer : peers) {
    std::printf("%-11s %-8s %5s %6s %-11s", "", "", "", "", peer.name.c_str());
    if (!peer.ms[product]) {
      std::printf(" has no such product\n");
      continue;
    }
    const double ms = *peer.ms[product];
    const double flops = times.ProductFlops(tokens) * (product == 3 ? 3 : 1);
    std::printf("%9.1f %8.1f %9s %9s %7.3f %7.3f   ours is %.1fx\n", ms * 1e3, flops / ms / 1e9, "",
                "", times.dense[product] / ms, times.equal[product] / ms, ms / times.ours[product]);
  }
  std::fflush(stdout);
}

}  // namespace

Status BenchKernelsCommand::Run() const {
  const auto cases = CasesOf(*this);
  ASSIGN_OR_RETURN(Session session, OpenSession(cases.ok() ? SessionOptions() : kNoCompute));
  if (!cases.ok()) return ForThisRank(cases.status(), session);
  if (session.communicator->rank() != 0) return OkStatus();
  const DeviceRates rates = MeasureRates(session);
  if (!json) PrintHeader(rates);
  nlohmann::json all = nlohmann::json::array();
  for (const KernelCase& c : *cases) {
    const KernelTimes times = TimeKernels(c, repeats, *session.backend, *session.stream);
    std::vector<KernelPeer> others;
    if (peers) others = TimePeers(c, *session.backend, *session.stream);
    for (int product = 0; product < static_cast<int>(kProductNames.size()); ++product) {
      all.push_back(ToJson(c, times, product, rates, *this));
      AddPeers(others, product, &all.back());
      if (json) continue;
      Print(all.back());
      PrintPeers(others, times, product, c.tokens);
    }
  }
  if (json) {
    const nlohmann::json document = {{"memory_bytes_per_second", rates.memory},
                                     {"l2_to_shared_bytes_per_second", rates.l2_to_shared},
                                     {"cases", all}};
    std::printf("%s\n", document.dump().c_str());
  }
  return OkStatus();
}

}  // namespace filigree
