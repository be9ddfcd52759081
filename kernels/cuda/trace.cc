#include "kernels/cuda/trace.h"

#include <cstdlib>
#include <mutex>
#include <set>
#include <string_view>

#include "kernels/base/log.h"

namespace filigree {

bool TraceKernels() {
  static const bool asked = [] {
    const char* value = std::getenv("FILIGREE_TRACE_KERNELS");
    return value != nullptr && std::string_view(value) == "1";
  }();
  return asked;
}

void TraceChoice(const std::string& operation, const std::string& shape,
                 const std::string& choice) {
  static std::mutex mutex;
  static std::set<std::string> seen;
  const std::string line = operation + " " + shape + ": " + choice;
  const std::lock_guard<std::mutex> lock(mutex);
  if (seen.insert(line).second) LogInfo(line);
}

}  // namespace filigree
