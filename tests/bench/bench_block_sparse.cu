// Checks and times the block-sparse products against dense cuBLAS.
//
//   bench_block_sparse --check [--path hopper|general] [--verbose]   correctness; exit code 1 on a
//                                                                    failure
//   bench_block_sparse --bandwidth             L2 to shared memory, copies only
//   bench_block_sparse --sweep SHAPE           cluster x token group for one shape, e.g. 4096x4096
//   bench_block_sparse --time                  the table: shapes x blocks x sparsities
//       [--block 128x128,128x64,64x64] [--shape 4096x4096,..] [--sparsity 50,75,90] [--balanced]
//       [--path hopper|general]
//       [--tokens 16384] [--repeats 20] [--cluster C] [--group G]
//       [--json FILE --run-id ID --date D --commit C]
//
// Times are medians over repeats of: three dense products, three of cuBLAS's on as many FLOPs as
// are executed, three of ours, back to back, with fresh normal inputs in two rotating sets, each
// larger than the L2. Executed FLOPs count stored blocks only.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "tests/bench/block_sparse_check.h"
#include "tests/bench/block_sparse_problem.h"
#include "tests/bench/dense_cublas.h"
#include "tests/bench/l2_bandwidth.h"

namespace filigree::bench {
namespace {

struct Options {
  std::vector<std::string> blocks = {"128x128"};
  std::vector<std::string> shapes = {"6144x2048", "8192x2048", "2048x8192", "4096x4096"};
  std::vector<std::string> sparsities = {"50", "75", "90"};
  Layout layout = Layout::kRandom;
  int64_t tokens = 16384;
  int repeats = 20;
  Tuning tuning;
  std::string json, run_id, date, commit, command;
};

std::pair<int64_t, int64_t> ParseShape(const std::string& text) {
  const size_t at = text.find('x');
  CHECK(at != std::string::npos) << "not a shape: " << text;
  return {std::stoll(text.substr(0, at)), std::stoll(text.substr(at + 1))};
}

Path ParsePath(const std::string& text) {
  for (const Path path : {Path::kHopper, Path::kGeneral}) {
    if (text == PathName(path)) return path;
  }
  CHECK(false) << "not a path: " << text;
  return Path::kHopper;
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

double Median(std::vector<float> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

// Milliseconds, medians: forward, input gradient, weight gradient, all three together.
struct Times {
  double ms[4];
};
constexpr const char* kOps[] = {"forward", "input_grad", "weight_grad", "total"};

// Records four events around three products, for every repeat and contender.
class Stopwatch {
 public:
  explicit Stopwatch(int repeats) : events_(repeats) {
    for (auto& row : events_) {
      for (auto& event : row) CUDA_CHECK(cudaEventCreate(&event));
    }
  }
  ~Stopwatch() {
    for (auto& row : events_) {
      for (auto& event : row) cudaEventDestroy(event);
    }
  }
  template <typename A, typename B, typename C>
  void Run(int repeat, A forward, B input_grad, C weight_grad) {
    auto& row = events_[repeat];
    CUDA_CHECK(cudaEventRecord(row[0]));
    forward();
    CUDA_CHECK(cudaEventRecord(row[1]));
    input_grad();
    CUDA_CHECK(cudaEventRecord(row[2]));
    weight_grad();
    CUDA_CHECK(cudaEventRecord(row[3]));
  }
  Times Medians() const {
    Times times;
    for (int op = 0; op < 4; ++op) {
      std::vector<float> samples;
      for (const auto& row : events_) {
        float ms;
        CUDA_CHECK(cudaEventElapsedTime(&ms, row[op == 3 ? 0 : op], row[op == 3 ? 3 : op + 1]));
        samples.push_back(ms);
      }
      times.ms[op] = Median(samples);
    }
    return times;
  }

 private:
  struct Row {
    cudaEvent_t events[4];
    cudaEvent_t& operator[](int i) { return events[i]; }
    const cudaEvent_t& operator[](int i) const { return events[i]; }
    cudaEvent_t* begin() { return events; }
    cudaEvent_t* end() { return events + 4; }
  };
  std::vector<Row> events_;
};

struct Result {
  std::string block, shape, sparsity, layout;
  double flops;  // executed, of one product
  Times ours, dense, equal;
};

Result TimeCase(const Options& options, const std::string& block, const std::string& shape,
                const std::string& sparsity, DenseCublas& cublas) {
  const auto [n, k] = ParseShape(shape);
  const auto [rows, cols] = ParseShape(block);
  const double density = 1 - std::stod(sparsity) / 100;
  BlockSparseProblem p(MakePattern(options.layout, {static_cast<int>(rows), static_cast<int>(cols)},
                                   n, k, density, 1234),
                       options.tokens, Fill::kNormal, 42, options.tuning);
  DeviceArray<__nv_bfloat16> w(n * k), y(options.tokens * n), dx(options.tokens * k), dw(n * k);
  FillRandom(w.get(), n * k, Fill::kNormal, 0.02f, 3);
  const int64_t t = options.tokens;
  const auto part = [&](int64_t width) {
    return std::max<int64_t>(64, static_cast<int64_t>(width * density + 32) / 64 * 64);
  };
  const auto dense = [&](Stopwatch& watch, int repeat, int set, int64_t kf, int64_t nw) {
    watch.Run(
        repeat, [&] { cublas.Forward(p.x[set].get(), w.get(), y.get(), t, n, kf); },
        [&] { cublas.InputGrad(p.dy[set].get(), w.get(), dx.get(), t, n, kf); },
        [&] { cublas.WeightGrad(p.dy[set].get(), p.x[set].get(), dw.get(), t, nw, k); });
  };
  constexpr int kWarmUp = 5;
  Stopwatch dense_watch(options.repeats), equal_watch(options.repeats), our_watch(options.repeats);
  for (int i = -kWarmUp; i < options.repeats; ++i) {
    const int repeat = std::max(i, 0);  // warm-up records are overwritten
    const int set = repeat % BlockSparseProblem::kSets;
    dense(dense_watch, repeat, set, k, n);
    dense(equal_watch, repeat, set, part(k), part(n));
    our_watch.Run(
        repeat, [&] { p.RunForward(set, nullptr); }, [&] { p.RunInputGrad(set, nullptr); },
        [&] { p.RunWeightGrad(set, false, nullptr); });
  }
  CUDA_CHECK(cudaDeviceSynchronize());
  return {block,
          shape,
          sparsity,
          LayoutName(options.layout),
          p.ForwardFlops(),
          our_watch.Medians(),
          dense_watch.Medians(),
          equal_watch.Medians()};
}

void PrintHeader() {
  std::printf("%-9s %-8s %-10s %3s %-11s %8s %8s %8s %8s %7s %7s\n", "layout", "block", "N x K",
              "%", "product", "us", "TFLOP/s", "dense us", "equal us", "x dense", "x equal");
}

void Print(const Result& r) {
  for (int op = 0; op < 4; ++op) {
    const double ours = r.ours.ms[op];
    std::printf("%-9s %-8s %-10s %3s %-11s %8.1f %8.0f %8.1f %8.1f %7.2f %7.2f\n", r.layout.c_str(),
                r.block.c_str(), r.shape.c_str(), r.sparsity.c_str(), kOps[op], ours * 1e3,
                r.flops * (op == 3 ? 3 : 1) / ours / 1e9, r.dense.ms[op] * 1e3,
                r.equal.ms[op] * 1e3, r.dense.ms[op] / ours, r.equal.ms[op] / ours);
  }
  std::fflush(stdout);
}

std::string Record(const Options& options, const std::string& name, const Result& r, int op,
                   const char* unit, double value, double peer_ms) {
  cudaDeviceProp device;
  CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
  std::ostringstream out;
  out << "{\"name\": \"" << name << "\", \"value\": " << value << ", \"unit\": \"" << unit
      << "\", \"ours_ms\": " << r.ours.ms[op] << ", \"peer_ms\": " << peer_ms
      << ", \"samples\": " << options.repeats << ", \"run_id\": \"" << options.run_id
      << "\", \"settings\": {\"shape\": \"" << r.shape << "\", \"block\": \"" << r.block
      << "\", \"sparsity\": " << r.sparsity << ", \"layout\": \"" << r.layout
      << "\", \"product\": \"" << kOps[op] << "\", \"tokens\": " << options.tokens
      << ", \"equal_flops_cublas_ms\": " << r.equal.ms[op]
      << ", \"executed_tflops\": " << r.flops * (op == 3 ? 3 : 1) / r.ours.ms[op] / 1e9
      << ", \"loss_gap\": \"unmeasured\"}, \"device\": \"" << device.name << "\", \"date\": \""
      << options.date << "\", \"commit\": \"" << options.commit << "\", \"command\": \""
      << options.command << "\"}";
  return out.str();
}

void WriteJson(const Options& options, const std::vector<Result>& results) {
  std::vector<std::string> records;
  std::map<std::string, const Result*> worst;
  const auto ratio = [](const Result& r) { return r.dense.ms[3] / r.ours.ms[3]; };
  for (const Result& r : results) {
    const std::string block = r.block == "128x128" ? "128" : r.block == "64x64" ? "64" : r.block;
    const char* family = options.tuning.path == Path::kHopper ? "kernels" : "kernels_general";
    const std::string name = std::string(family) + "/block" + block + "/" + r.sparsity;
    const std::string suffix = r.layout == "random" ? "" : "/" + r.layout;
    for (int op = 0; op < 4; ++op) {
      records.push_back(Record(options, name + "/" + r.shape + "/" + kOps[op] + suffix, r, op,
                               "ratio", r.dense.ms[op] / r.ours.ms[op], r.dense.ms[op]));
    }
    const Result*& w = worst[name + "/vs_cublas_dense" + suffix];
    if (w == nullptr || ratio(r) < ratio(*w)) w = &r;
  }
  for (const auto& [name, r] : worst) {
    records.push_back(Record(options, name, *r, 3, "ratio", ratio(*r), r->dense.ms[3]));
  }
  std::ofstream out(options.json);
  out << "[\n";
  for (size_t i = 0; i < records.size(); ++i) {
    out << "  " << records[i] << (i + 1 < records.size() ? ",\n" : "\n");
  }
  out << "]\n";
}

void TimeAll(const Options& options) {
  DenseCublas cublas;
  std::vector<Result> results;
  PrintHeader();
  for (const auto& block : options.blocks) {
    for (const auto& sparsity : options.sparsities) {
      for (const auto& shape : options.shapes) {
        results.push_back(TimeCase(options, block, shape, sparsity, cublas));
        Print(results.back());
      }
    }
  }
  if (!options.json.empty()) WriteJson(options, results);
}

// Microseconds of the two products for every cluster size and token group.
void Sweep(Options options, const std::string& shape) {
  const auto [n, k] = ParseShape(shape);
  const auto [rows, cols] = ParseShape(options.blocks.front());
  const double density = 1 - std::stod(options.sparsities.front()) / 100;
  const auto pattern = MakePattern(options.layout, {static_cast<int>(rows), static_cast<int>(cols)},
                                   n, k, density, 1234);
  for (const int cluster : {1, 2}) {
    for (const int group : {1, 2, 4, 8, 16}) {
      BlockSparseProblem p(pattern, options.tokens, Fill::kNormal, 42,
                           {.cluster = cluster, .token_group = group});
      Stopwatch watch(options.repeats);
      for (int i = -2; i < options.repeats; ++i) {
        const int repeat = std::max(i, 0);
        watch.Run(
            repeat, [&] { p.RunForward(repeat % 2, nullptr); },
            [&] { p.RunInputGrad(repeat % 2, nullptr); },
            [&] { p.RunWeightGrad(repeat % 2, false, nullptr); });
      }
      CUDA_CHECK(cudaDeviceSynchronize());
      const Times times = watch.Medians();
      std::printf("sweep %s %s %s%% cluster=%d group=%2d:", options.blocks.front().c_str(),
                  shape.c_str(), options.sparsities.front().c_str(), cluster, group);
      for (int op = 0; op < 3; ++op) {
        std::printf("  %s %6.1f us %4.0f", kOps[op], times.ms[op] * 1e3,
                    p.ForwardFlops() / times.ms[op] / 1e9);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

int Main(int argc, char** argv) {
  Options options;
  std::string mode, sweep;
  bool verbose = false;
  for (int i = 0; i < argc; ++i)
    options.command += (i == 0 ? "bench_block_sparse" : std::string(" ") + argv[i]);
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&] {
      CHECK(i + 1 < argc) << flag << " needs a value";
      return std::string(argv[++i]);
    };
    if (flag == "--check" || flag == "--bandwidth" || flag == "--time")
      mode = flag;
    else if (flag == "--sweep")
      mode = flag, sweep = value();
    else if (flag == "--verbose")
      verbose = true;
    else if (flag == "--balanced")
      options.layout = Layout::kBalanced;
    else if (flag == "--block")
      options.blocks = Split(value());
    else if (flag == "--shape")
      options.shapes = Split(value());
    else if (flag == "--sparsity")
      options.sparsities = Split(value());
    else if (flag == "--path")
      options.tuning.path = ParsePath(value());
    else if (flag == "--tokens")
      options.tokens = std::stoll(value());
    else if (flag == "--repeats")
      options.repeats = std::stoi(value());
    else if (flag == "--cluster")
      options.tuning.cluster = std::stoi(value());
    else if (flag == "--group")
      options.tuning.token_group = std::stoi(value());
    else if (flag == "--json")
      options.json = value();
    else if (flag == "--run-id")
      options.run_id = value();
    else if (flag == "--date")
      options.date = value();
    else if (flag == "--commit")
      options.commit = value();
    else
      CHECK(false) << "unknown flag " << flag;
  }
  if (mode == "--check") return CheckBlockSparse(options.tuning.path, verbose) > 0 ? 1 : 0;
  if (mode == "--bandwidth") PrintL2Bandwidth();
  if (mode == "--sweep") Sweep(options, sweep);
  if (mode == "--time") TimeAll(options);
  return 0;
}

}  // namespace
}  // namespace filigree::bench

int main(int argc, char** argv) { return filigree::bench::Main(argc, argv); }
