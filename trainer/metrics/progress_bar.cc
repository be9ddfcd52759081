#include "trainer/metrics/progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "kernels/base/log.h"

namespace filigree {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool HasTerminal() { return isatty(STDERR_FILENO) == 1 && Environment("TERM") != "dumb"; }

int TerminalColumns() {
  const int given = std::atoi(Environment("COLUMNS").c_str());
  if (given > 0) return given;
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return BarStyle().columns;
}

bool LocaleIsUtf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string value = Environment(name);
    if (value.empty()) continue;
    return value.find("UTF-8") != std::string::npos || value.find("utf8") != std::string::npos;
  }
  return false;
}

std::string Repeat(const char* text, int count) {
  std::string repeated;
  for (int i = 0; i < count; ++i) repeated += text;
  return repeated;
}

}  // namespace

std::string RenderBar(const std::string& label, double fraction, const std::string& text,
                      const BarStyle& style) {
  fraction = std::clamp(fraction, 0.0, 1.0);
  char percent[16];
  std::snprintf(percent, sizeof(percent), " %3.0f %% ", std::floor(100 * fraction));
  // Terminals wrap a line that fills the last column.
  const int room = style.columns - 1;
  std::string head = label + percent;
  std::string tail = text.empty() ? "" : " " + text;
  const int taken = static_cast<int>(head.size() + tail.size());
  const int width = std::min(30, room - taken);
  constexpr int kShortestBar = 5;
  if (width < kShortestBar) return (head + tail).substr(0, std::max(room, 0));

  const int filled = static_cast<int>(std::lround(fraction * width));
  const std::string done = Repeat(style.unicode ? "\u2501" : "#", filled);
  const std::string left = Repeat(style.unicode ? "\u2500" : ".", width - filled);
  if (!style.color) return head + done + left + tail;
  return head + "\x1b[36m" + done + "\x1b[0m\x1b[2m" + left + "\x1b[0m" + tail;
}

struct ProgressBar::Screen {
  std::mutex mutex;
  std::string label;
  BarStyle style;
  std::string line;  // what is drawn, empty before the first update
  std::chrono::steady_clock::time_point drawn;

  static void Clear(void* context) {
    Screen& screen = *static_cast<Screen*>(context);
    std::lock_guard<std::mutex> lock(screen.mutex);
    if (!screen.line.empty()) std::fputs("\r\x1b[K", stderr);
  }
  static void Repaint(void* context) {
    Screen& screen = *static_cast<Screen*>(context);
    std::lock_guard<std::mutex> lock(screen.mutex);
    screen.Draw();
  }
  void Draw() {
    if (!line.empty()) std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    std::fflush(stderr);
  }
};

ProgressBar::ProgressBar(std::string label) : screen_(new Screen), visible_(HasTerminal()) {
  screen_->label = std::move(label);
  if (!visible_) return;
  screen_->style.color = Environment("NO_COLOR").empty();
  screen_->style.unicode = LocaleIsUtf8();
  SetLogScreenHooks({&Screen::Clear, &Screen::Repaint, screen_});
}

ProgressBar::~ProgressBar() {
  if (visible_) {
    SetLogScreenHooks({});
    Screen::Clear(screen_);
    std::fflush(stderr);
  }
  delete screen_;
}

void ProgressBar::Update(double fraction, const std::string& text) {
  if (!visible_) return;
  std::lock_guard<std::mutex> lock(screen_->mutex);
  const auto now = std::chrono::steady_clock::now();
  if (fraction < 1 && now - screen_->drawn < std::chrono::milliseconds(100)) return;
  screen_->drawn = now;
  screen_->style.columns = TerminalColumns();
  screen_->line = RenderBar(screen_->label, fraction, text, screen_->style);
  screen_->Draw();
}

}  // namespace filigree
