// NVIDIA's cuSPARSELt, found when it is first asked for: builds have its header alone, so that one
// binary runs with and without the library.
#pragma once

#include <cusparseLt.h>

namespace filigree {

// Its functions that are used here, without their prefix.
#define FILIGREE_CUSPARSELT_FUNCTIONS(F) \
  F(GetProperty)                         \
  F(GetErrorString)                      \
  F(Init)                                \
  F(Destroy)                             \
  F(DenseDescriptorInit)                 \
  F(StructuredDescriptorInit)            \
  F(MatDescriptorDestroy)                \
  F(MatmulDescriptorInit)                \
  F(MatmulDescSetAttribute)              \
  F(MatmulAlgSelectionInit)              \
  F(MatmulAlgSelectionDestroy)           \
  F(MatmulAlgSetAttribute)               \
  F(MatmulAlgGetAttribute)               \
  F(MatmulPlanInit)                      \
  F(MatmulPlanDestroy)                   \
  F(MatmulGetWorkspace)                  \
  F(SpMMACompressedSize2)                \
  F(SpMMACompress2)                      \
  F(Matmul)

struct CuSparseLt {
#define FILIGREE_CUSPARSELT_MEMBER(name) decltype(&::cusparseLt##name) name = nullptr;
  FILIGREE_CUSPARSELT_FUNCTIONS(FILIGREE_CUSPARSELT_MEMBER)
#undef FILIGREE_CUSPARSELT_MEMBER

  // Where the dynamic loader finds it, else where it lay when this was built. Looks once a process
  // and logs what it finds. nullptr: there is none, or one of another binary interface.
  static const CuSparseLt* Find();
};

#define CUSPARSELT_CHECK(library, call)                                             \
  FILIGREE_LIBRARY_CHECK((library).call, cusparseStatus_t, CUSPARSE_STATUS_SUCCESS, \
                         (library).GetErrorString)

}  // namespace filigree
