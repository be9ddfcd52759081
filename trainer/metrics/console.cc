#include "trainer/metrics/console.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/log.h"
#include "trainer/metrics/numbers.h"

namespace filigree {
namespace {

// Steps counted from 1 line up when their numbers have equal width.
std::string PadLeft(const std::string& text, size_t width) {
  return std::string(width - std::min(width, text.size()), ' ') + text;
}

}  // namespace

std::string StepLine(const StepMetrics& m, int64_t total_steps,
                     std::optional<double> seconds_left) {
  const std::string total = std::to_string(total_steps);
  std::string line = "step " + PadLeft(std::to_string(m.step), total.size()) + "/" + total;
  line += "  tokens " + FormatCount(static_cast<double>(m.tokens));
  line += "  loss " + FormatFixed(m.loss, 4);
  line += "  lr " + FormatScientific(m.lr);
  line += "  grad " + FormatFixed(m.grad_norm, 3);
  line += "  sparsity " + FormatPercent(m.sparsity);
  line += "  " + FormatCount(std::round(m.tokens_per_second)) + " tok/s";
  line += "  " + FormatFixed(m.step_ms, 1) + " ms";
  if (m.mfu_executed) line += "  MFU " + FormatPercent(*m.mfu_executed);
  if (m.skipped_steps > 0) line += "  skipped " + std::to_string(m.skipped_steps);
  if (seconds_left) line += "  ETA " + FormatDuration(*seconds_left);
  return line;
}

std::string EvaluationLine(const EvaluationMetrics& m) {
  std::string line = "step " + std::to_string(m.step) + "  val loss " + FormatFixed(m.val_loss, 4) +
                     "  perplexity " + FormatFixed(std::exp(m.val_loss), 2) + "  (" +
                     FormatCount(static_cast<double>(m.val_tokens)) + " tokens";
  if (m.val_unigram_entropy) {
    line += ", unigram entropy " + FormatFixed(*m.val_unigram_entropy, 4);
  }
  return line + ")";
}

Console::Console(int64_t total_steps, int64_t steps_done, int64_t log_every_steps)
    : total_steps_(total_steps),
      first_step_(steps_done + 1),
      log_every_steps_(log_every_steps),
      bar_("train") {}

std::optional<double> Console::SecondsLeft(int64_t step) {
  const auto now = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(now - last_step_).count();
  last_step_ = now;
  if (step == first_step_) return std::nullopt;
  // A plain mean at first, later one over about the last fifty steps.
  const double weight = 1.0 / static_cast<double>(std::min<int64_t>(++steps_timed_, 50));
  seconds_per_step_ += weight * (seconds - seconds_per_step_);
  return seconds_per_step_ * static_cast<double>(total_steps_ - step);
}

void Console::Step(const StepMetrics& m) {
  const std::optional<double> seconds_left = SecondsLeft(m.step);
  if (m.step % log_every_steps_ == 0 || m.step == first_step_ || m.step == total_steps_) {
    LogInfo(StepLine(m, total_steps_, seconds_left));
  }
  if (!bar_.visible()) return;
  std::string text = "step " + std::to_string(m.step) + "/" + std::to_string(total_steps_) +
                     "  loss " + FormatFixed(m.loss, 3) + "  " +
                     FormatCount(std::round(m.tokens_per_second)) + " tok/s";
  if (seconds_left) text += "  ETA " + FormatDuration(*seconds_left);
  bar_.Update(static_cast<double>(m.step) / static_cast<double>(total_steps_), text);
}

void Console::Evaluation(const EvaluationMetrics& m) { LogInfo(EvaluationLine(m)); }

}  // namespace filigree
