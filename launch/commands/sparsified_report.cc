#include "launch/commands/sparsified_report.h"

#include <cstdio>

#include "trainer/metrics/numbers.h"

namespace filigree {

nlohmann::json ToJson(const SparsifiedMemory& memory) {
  return {{"state", memory.state},
          {"dense_state", memory.dense_state},
          {"compute_copies", memory.compute_copies},
          {"indices", memory.indices},
          {"gradient_scratch", memory.gradient_scratch}};
}

void PrintSparsified(const SparsifiedMemory& memory) {
  if (!memory.any()) return;
  const auto size = [](int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); };
  std::printf("  sparsified weights\n");
  std::printf("    state             %s (%.1f %% of the dense weights' %s)\n",
              size(memory.state).c_str(),
              100 * static_cast<double>(memory.state) / static_cast<double>(memory.dense_state),
              size(memory.dense_state).c_str());
  std::printf("    compute copies    %s\n", size(memory.compute_copies).c_str());
  std::printf("    indices           %s\n", size(memory.indices).c_str());
  std::printf("    gradient scratch  %s, one layer's\n", size(memory.gradient_scratch).c_str());
}

}  // namespace filigree
