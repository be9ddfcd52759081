#include "kernels/cuda/two_four_plans.h"

#include <iomanip>
#include <limits>
#include <sstream>
#include <string>

#include "kernels/base/log.h"
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/timed_runs.h"

namespace filigree {
namespace {

constexpr int kTimedRuns = 5;
// Of the dense product's time. Alone, products gain more than in a step: three at 768 wide that
// took 0.89 to 0.97 of it made a step of GPT-2 124M 3 % slower (kernels/README.md).
constexpr float kWorthwhile = 0.85f;
// Fewer are worth neither a compression nor, in generation, which passes through all of them, the
// time to choose.
constexpr int64_t kMinTokens = 1024;
// cuSPARSELt takes no others.
constexpr int64_t kTokenMultiple = 8;

bool IsAligned(ConstTensorView view) {
  return view.dtype() == DType::kBF16 && reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 &&
         view.row_stride() % 8 == 0;
}

// Arguments whose outputs lie elsewhere, since they may be addends too.
class TrialOutputs {
 public:
  explicit TrialOutputs(const MatMulArgs& args) : args_(args) {
    size_t bytes = 0;
    for (const TensorView* view : Outputs()) bytes += BytesOf(*view);
    if (cudaMalloc(&memory_, bytes) != cudaSuccess) {
      cudaGetLastError();
      memory_ = nullptr;
      return;
    }
    auto* next = static_cast<std::byte*>(memory_);
    for (TensorView* view : Outputs()) {
      const size_t taken = BytesOf(*view);
      if (taken > 0) *view = At(next, *view);
      next += taken;
    }
  }
  ~TrialOutputs() { CUDA_CHECK(cudaFree(memory_)); }
  TrialOutputs(const TrialOutputs&) = delete;
  TrialOutputs& operator=(const TrialOutputs&) = delete;

  bool has_memory() const { return memory_ != nullptr; }
  const MatMulArgs& args() const { return args_; }

 private:
  std::array<TensorView*, 5> Outputs() {
    ProductEpilogue& epilogue = args_.epilogue;
    return {&args_.out, &epilogue.pre_activation, &epilogue.swiglu.dup, &epilogue.swiglu_output.y,
            &epilogue.column_sums};
  }
  static size_t BytesOf(const TensorView& view) {
    if (view.empty()) return 0;
    return AlignUp(view.rows() * view.row_stride() * SizeOf(view.dtype()), 256);
  }
  static TensorView At(void* data, const TensorView& view) {
    if (view.rank() == 1) return TensorView(data, view.dtype(), {view.size()});
    return TensorView::Matrix(data, view.dtype(), view.rows(), view.cols(), view.row_stride());
  }

  MatMulArgs args_;
  void* memory_ = nullptr;
};

template <typename Fn>
float Time(const Fn& run, cudaStream_t stream) {
  run();
  return MeanMilliseconds(kTimedRuns, run, stream);
}

std::string TextOf(const TwoFourCall& call, const ProductEpilogue& epilogue) {
  std::ostringstream text;
  text << "2:4 " << (call.side.transposed ? "input gradient " : "forward ") << call.side.out << "x"
       << call.side.in << ", " << call.tokens << " tokens";
  if (call.bias != nullptr) text << ", bias";
  if (call.addend != nullptr) text << ", addend";
  if (!epilogue.pre_activation.empty()) text << ", GELU";
  if (!epilogue.gelu_input.empty()) text << ", GELU's gradient";
  if (!epilogue.swiglu.empty()) text << ", SwiGLU's gradient";
  if (!epilogue.swiglu_output.empty()) text << ", SwiGLU";
  return text.str();
}

}  // namespace

std::optional<TwoFourCall> TwoFourCallOf(const MatMulArgs& args, TwoFourKind kind) {
  const bool transposed = !args.transpose_b;
  if (kind == TwoFourKind::kNone || (transposed && kind != TwoFourKind::kRowsAndColumns)) return {};
  if (args.transpose_a || args.batch.count != 1 || args.scale != 1) return {};
  if (args.a.rows() < kMinTokens || args.a.rows() % kTokenMultiple != 0) return {};
  const ConstTensorView residual = args.epilogue.residual;
  if (args.accumulate && !residual.empty()) return {};
  const TensorView result = args.epilogue.ResultIn(args.out);
  if (!IsAligned(args.a) || !IsAligned(result)) return {};
  if (args.accumulate && result.data() != args.out.data()) return {};
  if (!residual.empty() && !IsAligned(residual)) return {};
  if (!args.bias.empty() && !IsAligned(args.bias)) return {};
  TwoFourCall call = {.side = {.out = args.b.rows(), .in = args.b.cols(), .transposed = transposed},
                      .tokens = args.a.rows(),
                      .input_stride = args.a.row_stride(),
                      .result_stride = result.row_stride(),
                      .input = args.a.data(),
                      .bias = args.bias.data(),
                      .result = result.data()};
  if (args.accumulate) {
    call.addend = result.data();
    call.addend_stride = result.row_stride();
  } else if (!residual.empty()) {
    call.addend = residual.data();
    call.addend_stride = residual.row_stride();
  }
  return call;
}

std::shared_ptr<TwoFourPlans> TwoFourPlans::Make(CudaBackend& backend) {
  std::shared_ptr<TwoFourPlans> plans(new TwoFourPlans(backend));
  plans->context_ = CuSparseLtContext::Make();
  return plans->context_ ? plans : nullptr;
}

std::unique_ptr<CompressedSide> TwoFourPlans::Compress(const TwoFourSide& side, const void* weight,
                                                       Stream& stream) {
  const cudaStream_t native = NativeStream(stream);
  CudaDevice& device = backend_.cuda_device();
  std::unique_ptr<CompressedSide> made = CompressedSide::Make(side, *context_, device);
  if (!made || made->scratch_bytes() > workspace_bytes()) return nullptr;
  const auto [entry, is_new] = places_.try_emplace({side.out, side.in, side.transposed});
  if (is_new) {
    const auto library = [&](const void* coded, void* words) {
      made->CompressByLibrary(coded, words, workspace(), native);
    };
    entry->second = CompressedPlaces::Learn(side, made->bytes(), library, device, native);
  }
  made->Begin(weight, entry->second, workspace(), native);
  return made;
}

TwoFourPlans::Key TwoFourPlans::KeyOf(const TwoFourCall& call, const MatMulArgs& args) {
  const ProductEpilogue& epilogue = args.epilogue;
  const bool passes[] = {call.bias != nullptr,
                         call.addend != nullptr,
                         !epilogue.pre_activation.empty(),
                         epilogue.makes_codes(),
                         !epilogue.gelu_input.empty(),
                         epilogue.gelu_input.dtype() == DType::kU8,
                         !epilogue.swiglu.empty(),
                         epilogue.swiglu.linear,
                         !epilogue.swiglu_output.empty(),
                         epilogue.swiglu_output.linear,
                         !epilogue.column_sums.empty()};
  int64_t bits = 0;
  for (const bool pass : passes) bits = 2 * bits + (pass ? 1 : 0);
  return {call.side.out,     call.side.in,       call.side.transposed, call.tokens,
          call.input_stride, call.result_stride, call.addend_stride,   bits};
}

const TwoFourChoice* TwoFourPlans::Find(const TwoFourCall& call, const MatMulArgs& args) const {
  const auto found = choices_.find(KeyOf(call, args));
  return found == choices_.end() ? nullptr : &found->second;
}

std::unique_ptr<TwoFourProduct> TwoFourPlans::Fastest(const TwoFourCall& call,
                                                      const CompressedSide& compressed,
                                                      cudaStream_t stream) const {
  std::unique_ptr<TwoFourProduct> best =
      TwoFourProduct::Make(call, TwoFourProduct::kDefaultAlgorithm, *context_);
  if (!best) return nullptr;
  const int algorithms = best->algorithms();
  best.reset();
  float best_ms = std::numeric_limits<float>::infinity();
  for (int algorithm = 0; algorithm < algorithms; ++algorithm) {
    std::unique_ptr<TwoFourProduct> product = TwoFourProduct::Make(call, algorithm, *context_);
    if (!product || product->workspace_bytes() > workspace_bytes()) continue;
    const auto run = [&] { return product->Run(call, compressed.data(), workspace(), stream); };
    if (!run()) continue;
    const float ms = MeanMilliseconds(kTimedRuns, run, stream);
    if (ms >= best_ms) continue;
    best_ms = ms;
    best = std::move(product);
  }
  return best;
}

const TwoFourChoice& TwoFourPlans::Choose(const TwoFourCall& call, const MatMulArgs& args,
                                          CompressedSide* compressed, Stream& stream) {
  TwoFourChoice& choice = choices_[KeyOf(call, args)];
  const TrialOutputs trial(args);
  const std::string what = TextOf(call, args.epilogue);
  if (compressed == nullptr || !trial.has_memory()) {
    LogInfo(what + ": dense, " + (compressed ? "no memory to try" : "cuSPARSELt does not take it"));
    return choice;
  }
  const cudaStream_t native = NativeStream(stream);
  TwoFourCall elsewhere = *TwoFourCallOf(trial.args(), TwoFourKind::kRowsAndColumns);
  const std::unique_ptr<TwoFourProduct> product = Fastest(elsewhere, *compressed, native);
  if (!product) {
    LogInfo(what + ": dense, cuSPARSELt has no such product");
    return choice;
  }
  const float dense = Time([&] { backend_.MatMul(trial.args(), stream); }, native);
  const float sparse =
      Time([&] { CHECK(Run(*product, elsewhere, trial.args(), *compressed, stream)); }, native);
  const float compression =
      Time([&] { compressed->Compress(args.b.data(), workspace(), native); }, native);
  choice = {.sparse = sparse + compression < kWorthwhile * dense,
            .algorithm = product->algorithm()};
  std::ostringstream times;
  times << std::fixed << std::setprecision(3) << ": sparse " << sparse << " ms and " << compression
        << " to compress" << (compressed->has_places() ? "" : " (by the library)")
        << " against dense " << dense << ": " << (choice.sparse ? "sparse" : "dense");
  LogInfo(what + times.str());
  return choice;
}

bool TwoFourPlans::Run(TwoFourProduct& product, const TwoFourCall& call, const MatMulArgs& args,
                       const CompressedSide& compressed, Stream& stream) {
  if (!product.Run(call, compressed.data(), workspace(), NativeStream(stream))) return false;
  ProductEpilogue rest = args.epilogue;
  rest.residual = {};
  FinishProduct(backend_, args.epilogue.ResultIn(args.out), args.out, {}, rest, stream);
  return true;
}

}  // namespace filigree
