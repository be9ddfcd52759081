#include "trainer/config/ranges.h"

#include <google/protobuf/descriptor.h>

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace filigree::config {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

enum class Range {
  kAny,
  kPositive,
  kNotNegative,
  kMinusOneOrMore,
  kFraction,
  kBelowOne,
  kZeroOrOne
};

struct FieldRange {
  std::string_view field;
  Range range;
};

// By message and field; every number of run.proto has a row.
constexpr FieldRange kRanges[] = {
    {"RunConfig.seed", Range::kAny},
    {"ModelConfig.layers", Range::kPositive},
    {"ModelConfig.width", Range::kPositive},
    {"ModelConfig.heads", Range::kPositive},
    {"ModelConfig.kv_heads", Range::kPositive},
    {"ModelConfig.head_size", Range::kPositive},
    {"ModelConfig.feed_forward", Range::kPositive},
    {"ModelConfig.vocab_size", Range::kPositive},
    {"ModelConfig.padded_vocab_size", Range::kNotNegative},
    {"ModelConfig.max_positions", Range::kPositive},
    {"ModelConfig.rope_theta", Range::kPositive},
    {"ModelConfig.norm_epsilon", Range::kPositive},
    {"ModelConfig.init_std", Range::kPositive},
    {"ModelConfig.gelu_derivative_bits", Range::kNotNegative},
    {"DataSource.weight", Range::kPositive},
    {"DataConfig.loss_after_token", Range::kMinusOneOrMore},
    {"DataConfig.delimiter_token", Range::kMinusOneOrMore},
    {"DataConfig.padding_token", Range::kMinusOneOrMore},
    {"BatchConfig.seq_len", Range::kPositive},
    {"BatchConfig.tokens_per_step", Range::kPositive},
    {"BatchConfig.micro_batch_sequences", Range::kPositive},
    {"OptimizerConfig.beta1", Range::kBelowOne},
    {"OptimizerConfig.beta2", Range::kBelowOne},
    {"OptimizerConfig.epsilon", Range::kPositive},
    {"OptimizerConfig.weight_decay", Range::kNotNegative},
    {"OptimizerConfig.clip_norm", Range::kNotNegative},
    {"ScheduleConfig.lr", Range::kNotNegative},
    {"ScheduleConfig.warmup_steps", Range::kNotNegative},
    {"ScheduleConfig.warmup_fraction", Range::kFraction},
    {"ScheduleConfig.final_lr_fraction", Range::kFraction},
    {"ScheduleConfig.wsd_decay_fraction", Range::kFraction},
    {"SparsityConfig.sparsity", Range::kBelowOne},
    {"SparsityConfig.block_out", Range::kPositive},
    {"SparsityConfig.block_in", Range::kPositive},
    {"SparsityConfig.initial_sparsity", Range::kBelowOne},
    {"SparsityConfig.begin", Range::kNotNegative},
    {"SparsityConfig.end", Range::kNotNegative},
    {"SparsityConfig.update_interval", Range::kPositive},
    {"SparsityConfig.drop_fraction", Range::kFraction},
    {"SparsityConfig.final_drop_fraction", Range::kFraction},
    {"SparsityConfig.drop_end", Range::kFraction},
    {"SparsityConfig.min_density", Range::kFraction},
    {"SparsityConfig.min_share", Range::kFraction},
    {"SparsityConfig.growth_ramp_steps", Range::kNotNegative},
    {"Point.at", Range::kNotNegative},
    {"Point.sparsity", Range::kBelowOne},
    {"Phase.rewind_step", Range::kNotNegative},
    {"SparsityConfig.n", Range::kPositive},
    {"SparsityConfig.m", Range::kPositive},
    {"SparsityConfig.rank", Range::kNotNegative},
    {"SparsityConfig.alpha", Range::kNotNegative},
    {"ModelConfig.norm_width", Range::kPositive},
    {"LayerShape.heads", Range::kPositive},
    {"LayerShape.kv_heads", Range::kPositive},
    {"LayerShape.feed_forward", Range::kPositive},
    {"PruningConfig.target_parameters", Range::kPositive},
    {"PruningConfig.begin", Range::kNotNegative},
    {"PruningConfig.end", Range::kNotNegative},
    {"PruningConfig.interval", Range::kPositive},
    {"PruningConfig.units_per_event", Range::kNotNegative},
    {"Kind.minimum", Range::kPositive},
    {"Kind.alignment", Range::kPositive},
    {"PruningConfig.shrink_steps", Range::kPositive},
    {"PruningConfig.smoothing", Range::kBelowOne},
    {"PruningConfig.outlier_factor", Range::kPositive},
    {"PruningConfig.update_damping", Range::kPositive},
    {"PruningConfig.update_block", Range::kPositive},
    {"PruningConfig.compact_share", Range::kFraction},
    {"DistillationConfig.temperature", Range::kPositive},
    {"DistillationConfig.alpha", Range::kFraction},
    {"EvaluationConfig.every_steps", Range::kNotNegative},
    {"EvaluationConfig.tokens", Range::kNotNegative},
    {"EvaluationConfig.sample_tokens", Range::kNotNegative},
    {"Phase.tokens", Range::kPositive},
    {"Phase.steps", Range::kPositive},
    {"ParallelConfig.zero_stage", Range::kZeroOrOne},
    {"ParallelConfig.bucket_megabytes", Range::kNotNegative},
    {"ParallelConfig.cpu_threads", Range::kNotNegative},
    {"ParallelConfig.ranks", Range::kNotNegative},
    {"ParallelConfig.timeout_seconds", Range::kNotNegative},
    {"LinkConfig.network_gbps", Range::kPositive},
    {"LinkConfig.network_latency_us", Range::kNotNegative},
    {"LinkConfig.node_gbps", Range::kPositive},
    {"LinkConfig.node_latency_us", Range::kNotNegative},
    {"LinkConfig.gpus_per_node", Range::kPositive},
    {"CheckpointConfig.every_steps", Range::kNotNegative},
    {"CheckpointConfig.keep_last", Range::kNotNegative},
    {"LogConfig.every_steps", Range::kPositive},
    {"LogConfig.peak_tflops", Range::kNotNegative},
};

Range RangeOf(const FieldDescriptor& field) {
  const std::string name = field.containing_type()->name() + "." + field.name();
  for (const FieldRange& row : kRanges) {
    if (row.field == name) return row.range;
  }
  CHECK(false) << name << " has no row in the table of ranges";
  return Range::kAny;
}

// nullptr: `value` lies in the range. Infinities and NaN lie in none.
const char* Violation(Range range, double value) {
  const bool finite = std::isfinite(value);
  switch (range) {
    case Range::kAny:
      return nullptr;
    case Range::kPositive:
      return finite && value > 0 ? nullptr : "must be positive";
    case Range::kNotNegative:
      return finite && value >= 0 ? nullptr : "must not be negative";
    case Range::kMinusOneOrMore:
      return finite && value >= -1 ? nullptr : "must be a token id, or -1 for none";
    case Range::kFraction:
      return value >= 0 && value <= 1 ? nullptr : "must lie in [0, 1]";
    case Range::kBelowOne:
      return value >= 0 && value < 1 ? nullptr : "must lie in [0, 1)";
    case Range::kZeroOrOne:
      return value == 0 || value == 1 ? nullptr : "must be 0 or 1";
  }
  return nullptr;
}

bool IsNumber(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT64:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return true;
    default:
      return false;
  }
}

// For the comparison only; rounding beyond 2^53 does not change its sign.
double NumberOf(const Message& message, const FieldDescriptor* field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection.GetInt64(message, field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(message, field));
    default:
      return reflection.GetDouble(message, field);
  }
}

std::string Print(double value) {
  std::ostringstream out;
  out.precision(std::numeric_limits<double>::digits10);
  out << value;
  return out.str();
}

void CheckMessage(const Message& message, const std::string& prefix, const Origins& origins,
                  Problems* problems) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    std::string path = prefix + field->name();
    if (field->is_repeated()) {
      if (!field->message_type()) continue;  // lists of names
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        CheckMessage(reflection.GetRepeatedMessage(message, field, i),
                     path + "[" + std::to_string(i) + "].", origins, problems);
      }
    } else if (field->message_type()) {
      CheckMessage(reflection.GetMessage(message, field), path + ".", origins, problems);
    } else if (IsNumber(*field)) {
      const double value = NumberOf(message, field);
      const char* violation = Violation(RangeOf(*field), value);
      // A default that was derived from a bad value is not a second problem.
      if (!violation || !origins.Has(path)) continue;
      problems->Add(origins.Find(path), path + " " + violation + ", is " + Print(value));
    }
  }
}

}  // namespace

void CheckRanges(const Message& config, const Origins& origins, Problems* problems) {
  CheckMessage(config, "", origins, problems);
}

}  // namespace filigree::config
