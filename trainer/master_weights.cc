#include "trainer/master_weights.h"

#include "comm/flat_buffer.h"
#include "kernels/base/check.h"

namespace filigree {

int IndexOf(const std::vector<Parameter>& parameters, const std::string& name) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name == name) return static_cast<int>(i);
  }
  CHECK(false) << name << " is no parameter of this model";
  return -1;
}

std::vector<float> GatherMaster(const TrainingState& state, int parameter,
                                Communicator& communicator, Stream& stream, int64_t* bytes) {
  const std::vector<std::byte> gathered =
      GatherSegment(state.buffer(), parameter, StateKind::kMaster, communicator, stream);
  if (state.buffer().layout().shards() > 1) *bytes += static_cast<int64_t>(gathered.size());
  const auto* floats = reinterpret_cast<const float*>(gathered.data());
  return {floats, floats + gathered.size() / sizeof(float)};
}

}  // namespace filigree
