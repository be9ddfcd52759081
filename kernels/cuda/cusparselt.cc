#include "kernels/cuda/cusparselt.h"

#include <dlfcn.h>

#include <optional>
#include <string>

#include "kernels/base/log.h"

namespace filigree {
namespace {

constexpr const char* kName = "libcusparseLt.so.0";
// Objects are as large as this build's header says from here on.
constexpr int kFirstMinor = 8;

// Never closed: plans outlive whoever asked first.
void* Open() {
  if (void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL)) return library;
  return dlopen(FILIGREE_CUSPARSELT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
}

std::optional<CuSparseLt> Load() {
  const std::string densely = "; 2:4 weights are multiplied densely";
  void* library = Open();
  if (library == nullptr) {
    LogInfo(std::string("no ") + kName + densely +
            " (LD_LIBRARY_PATH may name its folder, in Python's nvidia-cusparselt-cu13 lib)");
    return std::nullopt;
  }
  CuSparseLt found;
#define FILIGREE_CUSPARSELT_LOAD(name)                                                     \
  found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, "cusparseLt" #name)); \
  if (found.name == nullptr) {                                                             \
    LogWarning(std::string(kName) + " has no cusparseLt" #name + densely);                 \
    return std::nullopt;                                                                   \
  }
  FILIGREE_CUSPARSELT_FUNCTIONS(FILIGREE_CUSPARSELT_LOAD)
#undef FILIGREE_CUSPARSELT_LOAD
  int major = 0, minor = 0, patch = 0;
  found.GetProperty(MAJOR_VERSION, &major);
  found.GetProperty(MINOR_VERSION, &minor);
  found.GetProperty(PATCH_LEVEL, &patch);
  const std::string version = "cuSPARSELt " + std::to_string(major) + "." + std::to_string(minor) +
                              "." + std::to_string(patch);
  if (major != 0 || minor < kFirstMinor) {
    LogWarning(version + " is not 0." + std::to_string(kFirstMinor) + " or a later 0.x" + densely);
    return std::nullopt;
  }
  LogInfo(version + " for 2:4 weights");
  return found;
}

}  // namespace

const CuSparseLt* CuSparseLt::Find() {
  static const std::optional<CuSparseLt> library = Load();
  return library ? &*library : nullptr;
}

}  // namespace filigree
