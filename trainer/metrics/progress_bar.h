// A progress bar at the foot of a terminal, below the log's lines.
//
// It is drawn on stderr, and only where that is a terminal; elsewhere every call does nothing, and
// the log's plain lines say how far things are. COLUMNS sets the width, NO_COLOR drops the colour,
// and a locale without UTF-8 gets ASCII.
#pragma once

#include <string>

namespace filigree {

// How a bar looks, apart from where it is drawn.
struct BarStyle {
  int columns = 80;
  bool color = false;
  bool unicode = false;
};

// One line of at most style.columns columns: "train  37 % ━━━━━━╸      text". `fraction` in [0, 1].
// `label` and `text` are ASCII.
std::string RenderBar(const std::string& label, double fraction, const std::string& text,
                      const BarStyle& style);

// Shown from its first Update to its destruction. At most one at a time; it and the log keep out of
// each other's way (SetLogScreenHooks).
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // True where there is a terminal to draw on.
  bool visible() const { return visible_; }
  // Redraws at most ten times a second; `fraction` 1 always draws.
  void Update(double fraction, const std::string& text);

 private:
  struct Screen;  // shared with the log's threads
  Screen* screen_;
  bool visible_ = false;
};

}  // namespace filigree
