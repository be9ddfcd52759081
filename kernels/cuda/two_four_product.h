// One product of cuSPARSELt with a 2:4 weight: its descriptors and an algorithm.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cusparselt.h"
#include "kernels/cuda/two_four_compress.h"
#include "kernels/cuda/two_four_side.h"

namespace filigree {

// The library on one device.
class CuSparseLtContext {
 public:
  // nullptr where the library is not found, or not for this card.
  static std::unique_ptr<CuSparseLtContext> Make();
  ~CuSparseLtContext();
  CuSparseLtContext(const CuSparseLtContext&) = delete;
  CuSparseLtContext& operator=(const CuSparseLtContext&) = delete;

  const CuSparseLt& library() const { return library_; }
  const cusparseLtHandle_t* handle() const { return &handle_; }

 private:
  explicit CuSparseLtContext(const CuSparseLt& library) : library_(library) {}
  const CuSparseLt& library_;
  cusparseLtHandle_t handle_;
  bool initialised_ = false;
};

// result [tokens, width] = input [tokens, depth] op(W) + addend + bias, BF16, row-major.
struct TwoFourCall {
  TwoFourSide side;
  int64_t tokens = 0;
  int64_t input_stride = 0, result_stride = 0, addend_stride = 0;  // elements between rows
  const void* input = nullptr;
  const void* addend = nullptr;  // may be the result; or none
  const void* bias = nullptr;    // [width], or none
  void* result = nullptr;

  // Whether one product serves both.
  bool IsLike(const TwoFourCall& other) const {
    return side == other.side && tokens == other.tokens && input_stride == other.input_stride &&
           result_stride == other.result_stride && addend_stride == other.addend_stride &&
           bias == other.bias && (addend == nullptr) == (other.addend == nullptr);
  }
};

// W as the tensor cores read it for one side, which must be 2:4 in that direction, of one mask.
class CompressedSide {
 public:
  // `context` must outlive it. Allocates what it holds. nullptr where cuSPARSELt does not take it.
  static std::unique_ptr<CompressedSide> Make(const TwoFourSide& side,
                                              const CuSparseLtContext& context, CudaDevice& device);
  ~CompressedSide();
  CompressedSide(const CompressedSide&) = delete;
  CompressedSide& operator=(const CompressedSide&) = delete;

  // By the library. `scratch`: at least scratch_bytes().
  void CompressByLibrary(const void* weight, void* words, void* scratch, cudaStream_t stream) const;
  // Compresses this weight, and takes the short way, in which only values move, from now on:
  // `places`, where there are some, if they make of it what the library does. Waits for the device.
  void Begin(const void* weight, std::shared_ptr<const CompressedPlaces> places, void* scratch,
             cudaStream_t stream);
  // Anew, with the same mask.
  void Compress(const void* weight, void* scratch, cudaStream_t stream);

  size_t scratch_bytes() const { return scratch_bytes_; }
  size_t bytes() const { return bytes_; }
  const void* data() const { return values_.data(); }
  bool has_places() const { return places_ != nullptr; }

 private:
  CompressedSide(const TwoFourSide& side, const CuSparseLtContext& context, CudaDevice& device)
      : side_(side), context_(context), device_(device) {}

  const TwoFourSide side_;
  const CuSparseLtContext& context_;
  CudaDevice& device_;
  cusparseLtMatDescriptor_t weight_;
  bool described_ = false;
  size_t scratch_bytes_ = 0, bytes_ = 0;
  DeviceBuffer values_;
  std::shared_ptr<const CompressedPlaces> places_;
  DeviceBuffer mask_;  // beside places
};

class TwoFourProduct {
 public:
  static constexpr int kDefaultAlgorithm = -1;

  // For calls that are like `call`. nullptr where cuSPARSELt has no such product or algorithm.
  static std::unique_ptr<TwoFourProduct> Make(const TwoFourCall& call, int algorithm,
                                              const CuSparseLtContext& context);
  ~TwoFourProduct();
  TwoFourProduct(const TwoFourProduct&) = delete;
  TwoFourProduct& operator=(const TwoFourProduct&) = delete;

  const TwoFourCall& call() const { return call_; }
  int algorithm() const { return algorithm_; }
  // How many algorithms there are, counted from 0; some may not serve.
  int algorithms() const { return algorithms_; }
  size_t workspace_bytes() const { return workspace_bytes_; }
  // False where it was not submitted.
  bool Run(const TwoFourCall& call, const void* compressed, void* workspace, cudaStream_t stream);

 private:
  TwoFourProduct(const TwoFourCall& call, int algorithm, const CuSparseLtContext& context)
      : call_(call), algorithm_(algorithm), context_(context) {}
  bool Describe();
  bool Select();

  const TwoFourCall call_;
  const int algorithm_;
  const CuSparseLtContext& context_;
  // The library's own, which may point to each other. How many of them there are, in this order.
  cusparseLtMatDescriptor_t matrices_[4];  // W, input, addend, result
  int matrix_count_ = 0;
  cusparseLtMatmulDescriptor_t operation_;
  cusparseLtMatmulAlgSelection_t selection_;
  cusparseLtMatmulPlan_t plan_;
  bool has_selection_ = false, has_plan_ = false;
  int algorithms_ = 0;
  size_t workspace_bytes_ = 0;
};

}  // namespace filigree
