#include "kernels/cpu/parallel.h"

#include <cblas.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "kernels/base/check.h"

namespace filigree {
namespace {

std::atomic<int> g_threads = 0;  // 0: not chosen yet

struct Free {
  void operator()(void* data) const { std::free(data); }
};
struct ScratchBuffer {
  std::unique_ptr<void, Free> data;
  size_t bytes = 0;
};
thread_local std::array<ScratchBuffer, static_cast<size_t>(ScratchSlot::kCount)> t_scratch;

}  // namespace

void SetCpuThreads(int threads) {
  CHECK_GE(threads, 1);
  openblas_set_num_threads(1);
  omp_set_num_threads(threads);
  g_threads = threads;
}

int CpuThreads() {
  if (g_threads == 0) SetCpuThreads(omp_get_max_threads());
  return g_threads;
}

void* ScratchBytes(ScratchSlot slot, size_t bytes) {
  constexpr size_t kLine = 64;
  ScratchBuffer& buffer = t_scratch[static_cast<size_t>(slot)];
  if (buffer.bytes < bytes) {
    const size_t rounded = (bytes + kLine - 1) / kLine * kLine;
    buffer.data.reset();
    buffer.data.reset(std::aligned_alloc(kLine, rounded));
    CHECK(buffer.data != nullptr) << "out of memory: " << rounded << " bytes of scratch";
    buffer.bytes = rounded;
  }
  return buffer.data.get();
}

}  // namespace filigree
