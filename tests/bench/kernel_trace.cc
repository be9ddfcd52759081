// A library that CUDA loads into any program and that writes down what the GPU ran, at no cost
// worth naming:
//
//     CUDA_INJECTION64_PATH=build/libfiligree_kernel_trace.so FILIGREE_TRACE_FILE=trace.csv
//     build/filigree ...
//
// One line an event: start and end in ns of the device's clock, device, stream, kind (kernel, copy,
// set), bytes, name. %p in the file's name becomes the process id, so that each rank writes its
// own. tests/bench/step_breakdown.py reads it. CUPTI's activity interface; buffers are written as
// they fill.
#include <cuda.h>
#include <cupti.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

constexpr size_t kBufferBytes = size_t{8} << 20;
std::FILE* output = nullptr;

void Require(CUptiResult result, const char* what) {
  if (result == CUPTI_SUCCESS) return;
  const char* text = nullptr;
  cuptiGetResultString(result, &text);
  std::fprintf(stderr, "kernel_trace: %s: %s\n", what, text != nullptr ? text : "unknown error");
  std::exit(1);
}

void CUPTIAPI GiveBuffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = kBufferBytes;
  *max_records = 0;
}

void WriteLine(uint64_t start, uint64_t end, uint32_t device, uint32_t stream, const char* kind,
               uint64_t bytes, const char* name) {
  std::fprintf(output, "%llu,%llu,%u,%u,%s,%llu,\"%s\"\n", static_cast<unsigned long long>(start),
               static_cast<unsigned long long>(end), device, stream, kind,
               static_cast<unsigned long long>(bytes), name);
}

void WriteRecord(const CUpti_Activity* record) {
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto* k = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
      WriteLine(k->start, k->end, k->deviceId, k->streamId, "kernel", 0, k->name);
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto* c = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
      WriteLine(c->start, c->end, c->deviceId, c->streamId, "copy", c->bytes, "memcpy");
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto* s = reinterpret_cast<const CUpti_ActivityMemset4*>(record);
      WriteLine(s->start, s->end, s->deviceId, s->streamId, "set", s->bytes, "memset");
      break;
    }
    default:
      break;
  }
}

void CUPTIAPI TakeBuffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) WriteRecord(record);
  std::free(buffer);
}

void Finish() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  std::fclose(output);
}

}  // namespace

// Called by the CUDA driver when it is initialised in a process with CUDA_INJECTION64_PATH.
extern "C" int InitializeInjection() {
  const char* wish = std::getenv("FILIGREE_TRACE_FILE");
  std::string path = wish != nullptr ? wish : "trace_%p.csv";
  if (const size_t at = path.find("%p"); at != std::string::npos) {
    path.replace(at, 2, std::to_string(getpid()));
  }
  output = std::fopen(path.c_str(), "w");
  if (output == nullptr) {
    std::fprintf(stderr, "kernel_trace: cannot write %s (set FILIGREE_TRACE_FILE)\n", path.c_str());
    std::exit(1);
  }
  std::fprintf(output, "start_ns,end_ns,device,stream,kind,bytes,name\n");
  Require(cuptiActivityRegisterCallbacks(GiveBuffer, TakeBuffer), "registering buffers");
  for (const CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                        CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET}) {
    Require(cuptiActivityEnable(kind), "enabling activity records");
  }
  std::atexit(Finish);
  return 1;
}
