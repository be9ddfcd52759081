// What the kernels of the norms' backward pass take.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/device_rows.h"

namespace filigree {

struct NormBackwardParams {
  Rows<const __nv_bfloat16> x, dy;
  Rows<__nv_bfloat16> dx;
  const __nv_bfloat16* gain;
  const float *mean, *rstd;  // mean of LayerNorm, else null
  // [partial rows, partial_vectors() * cols]: sums of some rows of dgain, then of dbias in
  // LayerNorm, then of dx if `sums_dx`.
  float* partials;
  int64_t rows;
  int cols;
  float divisor;  // of the row's sums
  bool sums_dx;

  int partial_vectors() const { return 1 + (mean != nullptr) + sums_dx; }
};

// Columns that LaunchNormBackward takes, in multiples of 8 with views that take vectors.
constexpr int kMaxNormBackwardCols = 8192;
// Adds to dx and writes `partial_rows` rows of partials, each the sums of some rows of x.
void LaunchNormBackward(const NormBackwardParams& p, int partial_rows, cudaStream_t stream);
// The same for any width and alignment, in two passes over the data; it does not sum dx.
void LaunchAnyNormBackward(const NormBackwardParams& p, int partial_rows, cudaStream_t stream);

}  // namespace filigree
