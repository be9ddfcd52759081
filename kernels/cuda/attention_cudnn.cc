#include <cudnn_frontend.h>

#include <iomanip>
#include <map>
#include <sstream>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/base/log.h"
#include "kernels/cuda/attention_plans.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/timed_runs.h"
#include "kernels/cuda/trace.h"

namespace filigree {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;

constexpr int64_t kLengthMultiple = 64;
constexpr int64_t kAlignmentBytes = 16;

// The names by which a graph and its calls know a tensor.
enum Uid : int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv };

// A matrix [T, heads * E] of the call, seen by cuDNN as [B, heads, S, E].
struct Operand {
  Uid uid;
  const void* data;
  int64_t heads, row_stride;

  bool aligned() const {
    return reinterpret_cast<uintptr_t>(data) % kAlignmentBytes == 0 &&
           row_stride * static_cast<int64_t>(SizeOf(DType::kBF16)) % kAlignmentBytes == 0;
  }
};
using Operands = std::vector<Operand>;

Operand OperandOf(Uid uid, const ConstTensorView& view, int64_t heads) {
  return {uid, view.data(), heads, view.row_stride()};
}

Operands OperandsOf(const AttentionArgs& args) {
  return {OperandOf(kQ, args.q, args.heads), OperandOf(kK, args.k, args.kv_heads),
          OperandOf(kV, args.v, args.kv_heads), OperandOf(kOut, args.out, args.heads)};
}

Operands OperandsOf(const AttentionBackwardArgs& args) {
  return {OperandOf(kQ, args.q, args.heads),       OperandOf(kK, args.k, args.kv_heads),
          OperandOf(kV, args.v, args.kv_heads),    OperandOf(kOut, args.out, args.heads),
          OperandOf(kDout, args.dout, args.heads), OperandOf(kDq, args.dq, args.heads),
          OperandOf(kDk, args.dk, args.kv_heads),  OperandOf(kDv, args.dv, args.kv_heads)};
}

bool Eligible(const AttentionShape& shape, const Operands& operands) {
  if (shape.seq_len % kLengthMultiple != 0 || shape.head_size % 8 != 0) return false;
  for (const Operand& operand : operands) {
    if (!operand.aligned()) return false;
  }
  return true;
}

enum class Kind : int64_t { kForward, kBackward, kDeterministicBackward };

// All that a graph depends on.
std::vector<int64_t> KeyOf(Kind kind, const AttentionShape& shape, const Operands& operands) {
  std::vector<int64_t> key = {static_cast<int64_t>(kind),
                              shape.sequences,
                              shape.seq_len,
                              shape.heads,
                              shape.kv_heads,
                              shape.head_size};
  for (const Operand& operand : operands) key.push_back(operand.row_stride);
  return key;
}

// Dimensions, strides and name of an operand, given to a tensor of the graph.
void Describe(const AttentionShape& shape, const Operand& operand, Tensor_attributes* tensor) {
  tensor->set_uid(operand.uid)
      .set_dim({shape.sequences, operand.heads, shape.seq_len, shape.head_size})
      .set_stride({shape.seq_len * operand.row_stride, shape.head_size, operand.row_stride, 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
}

std::shared_ptr<Tensor_attributes> Input(Graph* graph, const AttentionShape& shape,
                                         const Operand& operand) {
  Tensor_attributes tensor;
  Describe(shape, operand, &tensor);
  return graph->tensor(tensor);
}

void Output(const AttentionShape& shape, const Operand& operand,
            const std::shared_ptr<Tensor_attributes>& tensor) {
  tensor->set_output(true);
  Describe(shape, operand, tensor.get());
}

void DescribeLse(const AttentionShape& shape, Tensor_attributes* tensor) {
  tensor->set_uid(kLse)
      .set_dim({shape.sequences, shape.heads, shape.seq_len, 1})
      .set_stride({shape.heads * shape.seq_len, shape.seq_len, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
}

std::shared_ptr<Graph> NewGraph() {
  auto graph = std::make_shared<Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  return graph;
}

std::shared_ptr<Graph> ForwardGraph(const AttentionShape& shape, const Operands& operands) {
  auto graph = NewGraph();
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(true)
                     .set_attn_scale(shape.scale())
                     .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
                     .set_diagonal_band_right_bound(0);
  auto [out, lse] =
      graph->sdpa(Input(graph.get(), shape, operands[0]), Input(graph.get(), shape, operands[1]),
                  Input(graph.get(), shape, operands[2]), std::move(options));
  Output(shape, operands[3], out);
  lse->set_output(true);
  DescribeLse(shape, lse.get());
  return graph;
}

std::shared_ptr<Graph> BackwardGraph(const AttentionShape& shape, const Operands& operands,
                                     bool deterministic) {
  auto graph = NewGraph();
  auto options = fe::graph::SDPA_backward_attributes()
                     .set_name("attention backward")
                     .set_attn_scale(shape.scale())
                     .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
                     .set_diagonal_band_right_bound(0)
                     .set_deterministic_algorithm(deterministic);
  Tensor_attributes lse;
  DescribeLse(shape, &lse);
  auto [dq, dk, dv] = graph->sdpa_backward(
      Input(graph.get(), shape, operands[0]), Input(graph.get(), shape, operands[1]),
      Input(graph.get(), shape, operands[2]), Input(graph.get(), shape, operands[3]),
      Input(graph.get(), shape, operands[4]), graph->tensor(lse), std::move(options));
  Output(shape, operands[5], dq);
  Output(shape, operands[6], dk);
  Output(shape, operands[7], dv);
  return graph;
}

const char* NameOf(Kind kind) {
  switch (kind) {
    case Kind::kForward:
      return "attention";
    case Kind::kBackward:
      return "attention backward";
    case Kind::kDeterministicBackward:
      return "deterministic attention backward";
  }
  return "?";
}

// A built graph, or none where cuDNN does not support the shape.
struct Plan {
  std::shared_ptr<Graph> graph;
  int64_t workspace_bytes = 0;
  bool tuned = true;  // false: its first run is to choose among all of the graph's engines
  bool ran = false;
};

// Scores of one head times heads times sequences, beyond which the fastest engine is worth the
// seconds that building and timing all of them takes: at GPT-2 small's 32 x 1024 tokens a step,
// say.
constexpr int64_t kWorthTuning = int64_t{1} << 28;

// Engines may order sums in different ways, so that what must give the same bits every time keeps
// the one that the heuristics name.
bool IsTuned(Kind kind, const AttentionShape& shape) {
  return kind == Kind::kBackward &&
         shape.sequences * shape.heads * shape.seq_len * shape.seq_len >= kWorthTuning;
}

Plan Build(Kind kind, const AttentionShape& shape, const Operands& operands, cudnnHandle_t handle) {
  Plan plan;
  plan.graph = kind == Kind::kForward
                   ? ForwardGraph(shape, operands)
                   : BackwardGraph(shape, operands, kind == Kind::kDeterministicBackward);
  plan.tuned = !IsTuned(kind, shape);
  auto built = plan.graph->build(
      handle, {fe::HeurMode_t::A},
      plan.tuned ? fe::BuildPlanPolicy_t::HEURISTICS_CHOICE : fe::BuildPlanPolicy_t::ALL);
  if (built.is_bad()) {
    if (TraceKernels()) {
      TraceChoice(NameOf(kind), shape.Name(), "cuDNN declines: " + built.get_message());
    }
    return Plan{};
  }
  auto sized = plan.graph->get_workspace_size(plan.workspace_bytes);
  CHECK(sized.is_good()) << sized.get_message();
  return plan;
}

}  // namespace

struct AttentionPlans::Graphs {
  Graphs() { CUDNN_CHECK(cudnnCreate(&handle)); }
  ~Graphs() { cudnnDestroy(handle); }

  Plan& PlanFor(Kind kind, const AttentionShape& shape, const Operands& operands,
                cudaStream_t stream) {
    const std::vector<int64_t> key = KeyOf(kind, shape, operands);
    if (const auto found = plans.find(key); found != plans.end()) return found->second;
    cudaStreamCaptureStatus capturing;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
    CHECK(capturing == cudaStreamCaptureStatusNone)
        << "the first " << NameOf(kind) << " of " << shape.Name() << " must not be captured";
    return plans.emplace(key, Build(kind, shape, operands, handle)).first->second;
  }

  bool Run(Kind kind, const AttentionShape& shape, const Operands& operands, const void* lse,
           const Workspace& workspace, cudaStream_t stream) {
    if (!Eligible(shape, operands)) return false;
    Plan& plan = PlanFor(kind, shape, operands, stream);
    if (plan.graph == nullptr) return false;
    // cuDNN takes void* for what it only reads too.
    std::unordered_map<int64_t, void*> tensors = {{kLse, const_cast<void*>(lse)}};
    for (const Operand& operand : operands) {
      tensors[operand.uid] = const_cast<void*>(operand.data);
    }
    CUDNN_CHECK(cudnnSetStream(handle, stream));
    if (!plan.tuned) Tune(tensors, workspace, &plan);
    if (!plan.ran && kind == Kind::kDeterministicBackward) {
      ReportCost(shape, operands, tensors, workspace, plan, stream);
    }
    plan.ran = true;
    if (TraceKernels()) {
      TraceChoice(NameOf(kind), shape.Name(),
                  "cuDNN, workspace " + std::to_string(plan.workspace_bytes) + " bytes");
    }
    Execute(kind, shape, tensors, workspace, plan);
    return true;
  }

  void Execute(Kind kind, const AttentionShape& shape, std::unordered_map<int64_t, void*>& tensors,
               const Workspace& workspace, const Plan& plan) {
    void* scratch = plan.workspace_bytes > 0 ? workspace(plan.workspace_bytes) : nullptr;
    auto status = plan.graph->execute(handle, tensors, scratch);
    CHECK(status.is_good() || RecordingIsLost(NameOf(kind), status.get_message()))
        << NameOf(kind) << " of " << shape.Name() << ": " << status.get_message();
  }

  // What a bitwise run pays, measured once a shape: outputs are overwritten by whoever runs last.
  void ReportCost(const AttentionShape& shape, const Operands& operands,
                  std::unordered_map<int64_t, void*>& tensors, const Workspace& workspace,
                  const Plan& plan, cudaStream_t stream) {
    Plan& ordinary = PlanFor(Kind::kBackward, shape, operands, stream);
    std::ostringstream text;
    text << std::fixed << std::setprecision(3) << NameOf(Kind::kDeterministicBackward) << " of "
         << shape.Name() << " takes ";
    const auto time = [&](Kind kind, const Plan& timed) {
      const auto run = [&] { Execute(kind, shape, tensors, workspace, timed); };
      run();  // warms up
      return MeanMilliseconds(/*runs=*/3, run, stream);
    };
    text << time(Kind::kDeterministicBackward, plan) << " ms";
    if (ordinary.graph != nullptr) {
      if (!ordinary.tuned) Tune(tensors, workspace, &ordinary);
      text << " (the ordinary one " << time(Kind::kBackward, ordinary) << " ms)";
    }
    text << " and a workspace of " << (plan.workspace_bytes >> 20) << " MiB";
    LogInfo(text.str());
  }

  // Times all engines on the operands of the first run, which writes the outputs last.
  void Tune(std::unordered_map<int64_t, void*>& tensors, const Workspace& workspace, Plan* plan) {
    const int64_t bytes = plan->graph->get_autotune_workspace_size();
    auto tuned = plan->graph->autotune(handle, tensors, bytes > 0 ? workspace(bytes) : nullptr);
    CHECK(tuned.is_good()) << tuned.get_message();
    auto sized = plan->graph->get_workspace_size(plan->workspace_bytes);
    CHECK(sized.is_good()) << sized.get_message();
    plan->tuned = true;
  }

  cudnnHandle_t handle = nullptr;
  std::map<std::vector<int64_t>, Plan> plans;
};

bool AttentionPlans::Available() { return true; }
AttentionPlans::AttentionPlans() : graphs_(std::make_unique<Graphs>()) {}
AttentionPlans::~AttentionPlans() = default;

bool AttentionPlans::Forward(const AttentionArgs& args, const AttentionShape& shape,
                             const Workspace& workspace, cudaStream_t stream) {
  return graphs_->Run(Kind::kForward, shape, OperandsOf(args), args.lse.data(), workspace, stream);
}

bool AttentionPlans::Backward(const AttentionBackwardArgs& args, const AttentionShape& shape,
                              bool deterministic, const Workspace& workspace, cudaStream_t stream) {
  const Kind kind = deterministic ? Kind::kDeterministicBackward : Kind::kBackward;
  return graphs_->Run(kind, shape, OperandsOf(args), args.lse.data(), workspace, stream);
}

}  // namespace filigree
