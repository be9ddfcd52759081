// Defines SimdTableF32() and SimdTableF64() in namespace filigree::FILIGREE_ISA from the loops as
// this translation unit compiles them.
#include "kernels/cpu/simd_elementwise_loops.h"
#include "kernels/cpu/simd_reduction_loops.h"
#include "kernels/cpu/simd_tile_loops.h"

namespace filigree {
namespace {

template <typename T>
constexpr SimdKernels<T> kTable = {
    .lanes = kLanes<T>,
    .tile_rows = kTileRows,
    .tile_product = TileProduct<T>,
    .add = AddRow<T>,
    .scale = ScaleRow<T>,
    .swiglu = SwiGluRow<T>,
    .swiglu_backward = SwiGluBackwardRow<T>,
    .silu = SiluRow<T>,
    .silu_backward = SiluBackwardRow<T>,
    .gelu = GeluRow<T>,
    .gelu_backward = GeluBackwardRow<T>,
    .rotate = RotateRow<T>,
    .softmax_backward = SoftmaxBackwardRow<T>,
    .adamw = AdamWRow<T>,
    .max = MaxRow<T>,
    .dot = DotRow<T>,
    .exp_sum = ExpSumRow<T>,
    .sum_of_squares = SumOfSquaresRow<T>,
    .rms_norm = RmsNormRow<T>,
    .rms_norm_backward = RmsNormBackwardRow<T>,
    .layer_norm = LayerNormRow<T>,
    .layer_norm_backward = LayerNormBackwardRow<T>,
};

}  // namespace

namespace FILIGREE_ISA {
const SimdKernels<float>& SimdTableF32() { return kTable<float>; }
const SimdKernels<double>& SimdTableF64() { return kTable<double>; }
}  // namespace FILIGREE_ISA

}  // namespace filigree
