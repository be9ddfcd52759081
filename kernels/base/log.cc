#include "kernels/base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <mutex>

namespace filigree {
namespace {

struct LogState {
  std::mutex mutex;
  bool quiet = false;
  std::shared_ptr<spdlog::logger> file;
  LogScreenHooks hooks;
};

LogState& State() {
  static LogState state;
  return state;
}

void Write(spdlog::level::level_enum level, const std::string& prefix, const std::string& message) {
  LogState& state = State();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (state.quiet) return;
  if (state.hooks.clear) state.hooks.clear(state.hooks.context);
  std::fprintf(stderr, "%s%s\n", prefix.c_str(), message.c_str());
  if (state.hooks.repaint) state.hooks.repaint(state.hooks.context);
  if (state.file) {
    state.file->log(level, message);
    state.file->flush();
  }
}

}  // namespace

void LogInfo(const std::string& message) { Write(spdlog::level::info, "", message); }

void LogWarning(const std::string& message) { Write(spdlog::level::warn, "warning: ", message); }

void SetLogQuiet(bool quiet) { State().quiet = quiet; }

Status SetLogFile(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_st>(path);
    State().file = std::make_shared<spdlog::logger>("file", sink);
    State().file->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
  } catch (const spdlog::spdlog_ex& error) {
    return InvalidInput(path + ": cannot open the log file (" + error.what() + ")");
  }
  return OkStatus();
}

void SetLogScreenHooks(LogScreenHooks hooks) {
  std::lock_guard<std::mutex> lock(State().mutex);
  State().hooks = hooks;
}

}  // namespace filigree
