#include "trainer/metrics/metrics_writer.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <type_traits>

#include "data/file_io.h"
#include "trainer/metrics/json_text.h"

namespace filigree {
namespace {

// Every line begins so; a resumed run reads no more of it.
constexpr std::string_view kLineBegin = "{\"step\":";

class JsonLine {
 public:
  template <typename T>
  JsonLine& Add(const char* name, const T& value) {
    text_ += (text_.empty() ? "{" : ",") + QuoteJson(name) + ":";
    if constexpr (std::is_integral_v<T>) {
      text_ += std::to_string(value);
    } else if constexpr (std::is_same_v<T, std::string>) {
      text_ += QuoteJson(value);
    } else {
      text_ += NumberJson(value);
      if (!std::isfinite(value)) {
        Add((name + std::string("_is")).c_str(), NameNonFinite(value));
      }
    }
    return *this;
  }
  JsonLine& Add(const char* name, const std::optional<double>& value) {
    if (value) return Add(name, *value);
    text_ += "," + QuoteJson(name) + ":null";
    return *this;
  }
  std::string Finish() const { return text_ + "}"; }

 private:
  static std::string NameNonFinite(double value) {
    return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  }

  std::string text_;
};

bool KeepLine(std::string_view line, int64_t steps_done) {
  if (!line.starts_with(kLineBegin) || !line.ends_with('}')) return false;
  int64_t step = 0;
  const char* begin = line.data() + kLineBegin.size();
  const auto [end, error] = std::from_chars(begin, line.data() + line.size(), step);
  return error == std::errc() && step <= steps_done;
}

std::string KeepLines(std::string_view text, int64_t steps_done) {
  std::string kept;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // torn
    const std::string_view line = text.substr(0, end);
    if (KeepLine(line, steps_done)) kept.append(line).push_back('\n');
    text.remove_prefix(end + 1);
  }
  return kept;
}

}  // namespace

std::string ToJsonLine(const StepMetrics& m) {
  JsonLine line;
  line.Add("step", m.step)
      .Add("tokens", m.tokens)
      .Add("loss", m.loss)
      .Add("lr", m.lr)
      .Add("grad_norm", m.grad_norm)
      .Add("sparsity", m.sparsity)
      .Add("tokens_per_second", m.tokens_per_second)
      .Add("step_ms", m.step_ms)
      .Add("mfu_dense_equivalent", m.mfu_dense_equivalent)
      .Add("mfu_executed", m.mfu_executed)
      .Add("exchanged_bytes", m.exchanged_bytes)
      .Add("memory_bytes", m.memory_bytes)
      .Add("skipped_steps", m.skipped_steps);
  if (m.distillation_loss) line.Add("distillation_loss", *m.distillation_loss);
  return line.Finish();
}

std::string ToJsonLine(const EvaluationMetrics& m) {
  JsonLine line;
  line.Add("step", m.step).Add("val_loss", m.val_loss).Add("val_tokens", m.val_tokens);
  if (m.val_unigram_entropy) line.Add("val_unigram_entropy", *m.val_unigram_entropy);
  return line.Finish();
}

std::string ToJsonLine(const TopologyMetrics& m) {
  return JsonLine()
      .Add("step", m.step)
      .Add("topology", m.topology)
      .Add("dropped", m.dropped)
      .Add("grown", m.grown)
      .Add("stored_values", m.stored_values)
      .Add("exchanged_bytes", m.exchanged_bytes)
      .Finish();
}

std::string ToJsonLine(const PruningMetrics& m) {
  return JsonLine()
      .Add("step", m.step)
      .Add("topology", m.topology)
      .Add("dropped", m.dropped)
      .Add("grown", int64_t{0})
      .Add("stored_values", m.stored_values)
      .Add("exchanged_bytes", m.exchanged_bytes)
      .Add("live_values", m.live_values)
      .Add("memory_bytes", m.memory_bytes)
      .Add("attention_units", m.attention_units)
      .Add("feed_forward_units", m.feed_forward_units)
      .Add("stem_units", m.stem_units)
      .Finish();
}

std::string ToJsonLine(const PhaseMetrics& m) {
  return JsonLine().Add("step", m.step).Add("phase", m.phase).Finish();
}

StatusOr<std::unique_ptr<MetricsWriter>> MetricsWriter::Open(const std::string& run_dir,
                                                             int64_t steps_done) {
  const std::string path = run_dir + "/metrics.jsonl";
  std::string kept;
  if (steps_done > 0 && std::filesystem::exists(path)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    kept = KeepLines(text, steps_done);
  }
  RETURN_IF_ERROR(WriteFileAtomically(path, kept));
  File file(std::fopen(path.c_str(), "a"));
  if (!file) return InvalidInput(path + ": cannot be opened (" + std::strerror(errno) + ")");
  return std::unique_ptr<MetricsWriter>(new MetricsWriter(path, std::move(file)));
}

Status MetricsWriter::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  const bool written = std::fwrite(text.data(), 1, text.size(), file_.get()) == text.size();
  if (!written || std::fflush(file_.get()) != 0) {
    return MachineError(path_ + ": cannot be written (" + std::strerror(errno) +
                        "); free some space and start the run again, it goes on from its newest "
                        "checkpoint");
  }
  return OkStatus();
}

}  // namespace filigree
