#include "kernels/base/check.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace filigree {
namespace {

struct FatalContext {
  int rank = 0;
  std::string host;
  long long step = -1;
  std::function<void()> hook;
};

FatalContext& Context() {
  static FatalContext context;
  return context;
}

}  // namespace

void SetFatalRank(int rank, const std::string& host) {
  Context().rank = rank;
  Context().host = host;
}

void SetFatalStep(long long step) { Context().step = step; }

void SetFatalHook(std::function<void()> hook) { Context().hook = std::move(hook); }

namespace internal {

FatalMessage::FatalMessage(const char* file, int line, const char* expression) {
  const FatalContext& context = Context();
  stream_ << "filigree: fatal: rank " << context.rank;
  if (!context.host.empty()) stream_ << " on " << context.host;
  if (context.step >= 0) stream_ << ", step " << context.step;
  stream_ << ", " << file << ":" << line << ": " << expression << " ";
}

FatalMessage::~FatalMessage() {
  std::fprintf(stderr, "%s\n", stream_.str().c_str());
  std::fflush(nullptr);
  // A second failure inside the hook must not come back here for ever.
  if (std::function<void()> hook = std::exchange(Context().hook, nullptr)) hook();
  std::_Exit(1);
}

}  // namespace internal
}  // namespace filigree
