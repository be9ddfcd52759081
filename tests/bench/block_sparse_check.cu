#include <cmath>
#include <cstdio>
#include <cstring>

#include "tests/bench/block_sparse_check.h"
#include "tests/bench/block_sparse_problem.h"

namespace filigree::bench {
namespace {

// out[m, n] = sum over k of a[m * a_row + k * a_k] * b[n * b_row + k * b_k], in Sum's precision.
template <typename Sum>
__global__ void NaiveProductKernel(const __nv_bfloat16* a, int64_t a_row, int64_t a_k,
                                   const __nv_bfloat16* b, int64_t b_row, int64_t b_k, int64_t m,
                                   int64_t n, int64_t k, Sum* out) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= m * n) return;
  Sum sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    sum += static_cast<Sum>(__bfloat162float(a[index / n * a_row + i * a_k])) *
           static_cast<Sum>(__bfloat162float(b[index % n * b_row + i * b_k]));
  }
  out[index] = sum;
}

struct Operand {
  const __nv_bfloat16* data;
  int64_t row_stride, reduction_stride;
};

template <typename Sum>
std::vector<Sum> NaiveProduct(Operand a, Operand b, int64_t m, int64_t n, int64_t k) {
  DeviceArray<Sum> out(m * n);
  NaiveProductKernel<Sum><<<static_cast<unsigned>((m * n + 255) / 256), 256>>>(
      a.data, a.row_stride, a.reduction_stride, b.data, b.row_stride, b.reduction_stride, m, n, k,
      out.get());
  CUDA_CHECK(cudaGetLastError());
  return out.Download();
}

float Rounded(float value) { return __bfloat162float(__float2bfloat16(value)); }
float ToFloat(float value) { return value; }
float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

// Exact for integers; else both the norm and the largest error within twice those of a naive
// product with fp32 sums and a bf16 result. NaN fails.
template <typename T>
bool Matches(const std::vector<T>& ours, const std::vector<double>& exact,
             const std::vector<float>& naive, Fill fill, const char** why) {
  double ours_norm = 0, naive_norm = 0, ours_max = 0, naive_max = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double value = ToFloat(ours[i]);
    if (std::isnan(value)) return *why = "not written (NaN)", false;
    if (fill == Fill::kInteger) {
      const float expected = std::is_same_v<T, float> ? static_cast<float>(exact[i])
                                                      : Rounded(static_cast<float>(exact[i]));
      if (value != expected) return *why = "integers differ", false;
      continue;
    }
    const double e = std::abs(value - exact[i]);
    const double f = std::abs(Rounded(naive[i]) - exact[i]);
    ours_norm += e * e, naive_norm += f * f;
    ours_max = std::max(ours_max, e), naive_max = std::max(naive_max, f);
  }
  if (fill == Fill::kInteger) return true;
  if (ours_norm > 4 * naive_norm) return *why = "norm of the error too large", false;
  if (ours_max > 2 * naive_max) return *why = "largest error too large", false;
  return true;
}

struct Case {
  Layout layout;
  BlockShape block;
  int64_t out_features, in_features, tokens;
  double density;
  Fill fill;
};

class Checker {
 public:
  Checker(const Case& c, bool verbose, Tuning tuning)
      : case_(c),
        verbose_(verbose),
        tuning_(tuning),
        problem_(MakePattern(c.layout, c.block, c.out_features, c.in_features, c.density, 7),
                 c.tokens, c.fill, 99, tuning) {}

  int Run() {
    const int64_t t = case_.tokens, n = case_.out_features, k = case_.in_features;
    auto& p = problem_;
    const auto weight = p.DenseWeight();
    const Operand x{p.x[0].get(), k, 1}, dy{p.dy[0].get(), n, 1};
    Compare("forward", p.y, x, {weight.get(), k, 1}, t, n, k, [&] { p.RunForward(0, nullptr); });
    Compare("input_grad", p.dx, dy, {weight.get(), 1, k}, t, k, n,
            [&] { p.RunInputGrad(0, nullptr); });
    CheckWeightGrad();
    return failures_;
  }

 private:
  void Report(const char* op, bool good, const char* why) {
    failures_ += !good;
    if (good && !verbose_) return;
    std::printf("%s %s %s %dx%d N=%ld K=%ld T=%ld %s %s cluster=%d %s\n", good ? "ok  " : "FAIL",
                op, LayoutName(case_.layout), case_.block.rows, case_.block.cols,
                case_.out_features, case_.in_features, case_.tokens,
                case_.fill == Fill::kInteger ? "integer" : "normal", PathName(tuning_.path),
                tuning_.cluster, good ? "" : why);
    std::fflush(stdout);
  }

  // Poison, run, download; once more for bit-for-bit equality.
  template <typename T, typename Launch>
  std::vector<T> RunTwice(const char* op, DeviceArray<T>& out, Launch launch) {
    std::vector<T> results[2];
    for (auto& result : results) {
      out.Poison();
      launch();
      CUDA_CHECK(cudaDeviceSynchronize());
      result = out.Download();
    }
    const bool equal = results[0].empty() || std::memcmp(results[0].data(), results[1].data(),
                                                         results[0].size() * sizeof(T)) == 0;
    if (!equal) Report(op, false, "two runs differ");
    return results[0];
  }

  template <typename Launch>
  void Compare(const char* op, DeviceArray<__nv_bfloat16>& out, Operand a, Operand b, int64_t m,
               int64_t n, int64_t k, Launch launch) {
    const auto ours = RunTwice(op, out, launch);
    const char* why = "";
    const bool good = Matches(ours, NaiveProduct<double>(a, b, m, n, k),
                              NaiveProduct<float>(a, b, m, n, k), case_.fill, &why);
    Report(op, good, why);
  }

  // The stored blocks' part of a dense [out, in] array.
  template <typename T>
  std::vector<T> Gather(const std::vector<T>& dense) const {
    std::vector<T> stored;
    const auto& pattern = problem_.pattern;
    for (int i = 0; i < pattern.rows; ++i) {
      for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
        for (int r = 0; r < pattern.block.rows; ++r) {
          const auto* begin = dense.data() +
                              (int64_t{i} * pattern.block.rows + r) * case_.in_features +
                              int64_t{pattern.col[p]} * pattern.block.cols;
          stored.insert(stored.end(), begin, begin + pattern.block.cols);
        }
      }
    }
    return stored;
  }

  // Overwrites with set 0, then accumulates set 1 on top.
  void CheckWeightGrad() {
    auto& p = problem_;
    const int64_t n = case_.out_features, k = case_.in_features, t = case_.tokens;
    std::vector<double> exact;
    std::vector<float> naive;
    for (int set = 0; set < 2; ++set) {
      const Operand dy{p.dy[set].get(), 1, n}, x{p.x[set].get(), 1, k};
      const auto exact_set = Gather(NaiveProduct<double>(dy, x, n, k, t));
      const auto naive_set = Gather(NaiveProduct<float>(dy, x, n, k, t));
      exact.resize(exact_set.size()), naive.resize(naive_set.size());
      for (size_t i = 0; i < exact.size(); ++i) {
        exact[i] += exact_set[i], naive[i] += naive_set[i];
      }
      const auto ours = RunTwice("weight_grad", p.gradient, [&] {
        p.RunWeightGrad(0, false, nullptr);
        if (set == 1) p.RunWeightGrad(1, true, nullptr);
      });
      const char* why = "";
      const bool good = Matches(ours, exact, naive, case_.fill, &why);
      Report(set == 0 ? "weight_grad" : "weight_grad accumulating", good, why);
    }
  }

  Case case_;
  bool verbose_;
  Tuning tuning_;
  BlockSparseProblem problem_;
  int failures_ = 0;
};

constexpr Layout kLayouts[] = {Layout::kRandom,   Layout::kBalanced, Layout::kEmptyRows,
                               Layout::kOneBlock, Layout::kFull,     Layout::kUnbalanced,
                               Layout::kEmpty};

std::vector<std::pair<Case, Tuning>> HopperCases() {
  constexpr BlockShape kBlocks[] = {{128, 128}, {128, 64}, {64, 64}, {64, 128}};
  std::vector<std::pair<Case, Tuning>> cases;
  for (const BlockShape& block : kBlocks) {
    for (const Fill fill : {Fill::kInteger, Fill::kNormal}) {
      for (const Layout layout : kLayouts) {
        for (const int cluster : {1, 2}) {
          cases.push_back({{layout, block, 768, 512, 1023, 0.3, fill}, {.cluster = cluster}});
        }
      }
      for (const int64_t tokens : {1, 77, 512, 1029, 4096}) {
        cases.push_back({{Layout::kRandom, block, 512, 1024, tokens, 0.3, fill}, {}});
      }
      // More units than multiprocessors: whole units and slices in passing.
      cases.push_back({{Layout::kRandom, block, 2048, 3072, 2001, 0.75, fill}, {}});
      cases.push_back({{Layout::kRandom, block, 512, 640, 16384 + 5, 0.25, fill}, {.cluster = 2}});
    }
  }
  return cases;
}

std::vector<std::pair<Case, Tuning>> GeneralCases() {
  constexpr Tuning kTuning{.path = Path::kGeneral};
  std::vector<std::pair<Case, Tuning>> cases;
  for (const int rows : {16, 32, 64, 128}) {
    for (const int cols : {16, 32, 64, 128}) {
      for (const Fill fill : {Fill::kInteger, Fill::kNormal}) {
        for (const Layout layout : kLayouts) {
          cases.push_back({{layout, {rows, cols}, 384, 512, 1023, 0.3, fill}, kTuning});
        }
        for (const int64_t tokens : {1, 7, 63, 64, 65, 1000, 16384}) {
          cases.push_back({{Layout::kRandom, {rows, cols}, 256, 384, tokens, 0.3, fill}, kTuning});
        }
      }
    }
  }
  return cases;
}

}  // namespace

int CheckBlockSparse(Path path, bool verbose) {
  const auto cases = path == Path::kHopper ? HopperCases() : GeneralCases();
  int failures = 0;
  for (const auto& [c, tuning] : cases) failures += Checker(c, verbose, tuning).Run();
  std::printf("checked %zu cases, %d failures\n", cases.size(), failures);
  return failures;
}

}  // namespace filigree::bench
