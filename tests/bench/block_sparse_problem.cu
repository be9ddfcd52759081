#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tests/bench/block_sparse_problem.h"

namespace filigree::bench {
namespace {

__device__ uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

__global__ void FillRandomKernel(__nv_bfloat16* data, int64_t count, bool integer, float scale,
                                 uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint64_t bits = Mix(seed * 0x100000001B3ull + i);
    if (integer) {
      data[i] = __float2bfloat16(static_cast<float>(bits % 5) - 2.0f);
    } else {
      const float u = (static_cast<uint32_t>(bits) + 1.0f) * 0x1p-32f;
      const float v = static_cast<uint32_t>(bits >> 32) * 0x1p-32f;
      data[i] = __float2bfloat16(scale * sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * v));
    }
  }
}

// One CTA per stored block.
__global__ void ScatterBlocksKernel(const __nv_bfloat16* values, const int* block_row,
                                    const int* block_col, int rows, int cols, int64_t width,
                                    __nv_bfloat16* dense) {
  const int64_t block = blockIdx.x;
  for (int i = threadIdx.x; i < rows * cols; i += blockDim.x) {
    const int64_t row = int64_t{block_row[block]} * rows + i / cols;
    dense[row * width + int64_t{block_col[block]} * cols + i % cols] =
        values[block * rows * cols + i];
  }
}

// Rows in turn take the columns that are least used so far, ties at random.
std::vector<std::vector<int>> BalancedRows(int rows, int cols, int64_t blocks,
                                           std::mt19937_64& rng) {
  std::vector<int> used(cols, 0);
  std::vector<std::vector<int>> lists(rows);
  for (int i = 0; i < rows; ++i) {
    const int count = static_cast<int>(blocks * (i + 1) / rows - blocks * i / rows);
    std::vector<std::pair<std::pair<int, uint64_t>, int>> order;
    for (int j = 0; j < cols; ++j) order.push_back({{used[j], rng()}, j});
    std::sort(order.begin(), order.end());
    for (int k = 0; k < count; ++k) {
      lists[i].push_back(order[k].second);
      ++used[order[k].second];
    }
  }
  return lists;
}

std::vector<std::vector<int>> RandomRows(int rows, int cols, int64_t blocks, std::mt19937_64& rng) {
  std::vector<int> all(static_cast<size_t>(rows) * cols);
  std::iota(all.begin(), all.end(), 0);
  std::vector<std::vector<int>> lists(rows);
  for (int64_t k = 0; k < blocks; ++k) {
    std::swap(all[k], all[k + rng() % (all.size() - k)]);
    lists[all[k] / cols].push_back(all[k] % cols);
  }
  return lists;
}

}  // namespace

int MultiprocessorCount() {
  int device = 0, count = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

const char* LayoutName(Layout layout) {
  constexpr const char* kNames[] = {"random", "balanced",   "empty-rows", "one-block",
                                    "full",   "unbalanced", "empty"};
  return kNames[static_cast<int>(layout)];
}

const char* PathName(Path path) { return path == Path::kHopper ? "hopper" : "general"; }

HostPattern MakePattern(Layout layout, BlockShape block, int64_t out_features, int64_t in_features,
                        double density, uint64_t seed) {
  HostPattern pattern{.block = block,
                      .rows = static_cast<int>(out_features / block.rows),
                      .cols = static_cast<int>(in_features / block.cols)};
  std::mt19937_64 rng(seed);
  const int rows = pattern.rows, cols = pattern.cols;
  int64_t blocks = std::llround(density * rows * cols);
  if (layout == Layout::kFull) blocks = int64_t{rows} * cols;
  if (layout == Layout::kOneBlock) blocks = 1;
  if (layout == Layout::kEmpty) blocks = 0;
  std::vector<std::vector<int>> lists = layout == Layout::kBalanced
                                            ? BalancedRows(rows, cols, blocks, rng)
                                            : RandomRows(rows, cols, blocks, rng);
  if (layout == Layout::kUnbalanced) {  // the first row full, the others thinner and thinner
    for (int i = 0; i < rows; ++i) {
      lists[i].clear();
      for (int j = 0; j < cols; ++j) {
        if (i == 0 || rng() % (i + 1) == 0) lists[i].push_back(j);
      }
    }
  }
  if (layout == Layout::kEmptyRows) {  // every third row and column
    for (int i = 0; i < rows; ++i) {
      if (i % 3 == 1) lists[i].clear();
      std::erase_if(lists[i], [](int j) { return j % 3 == 0; });
    }
  }
  pattern.row_begin = {0};
  for (auto& list : lists) {
    std::sort(list.begin(), list.end());
    pattern.col.insert(pattern.col.end(), list.begin(), list.end());
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  return pattern;
}

void FillRandom(__nv_bfloat16* data, int64_t count, Fill fill, float scale, uint64_t seed) {
  FillRandomKernel<<<1024, 256>>>(data, count, fill == Fill::kInteger, scale, seed);
  CUDA_CHECK(cudaGetLastError());
}

BlockSparseProblem::BlockSparseProblem(HostPattern host, int64_t token_count, Fill fill,
                                       uint64_t seed, Tuning tuning)
    : pattern(std::move(host)), tokens(token_count), path_(tuning.path) {
  const BsrPattern view = pattern.view();
  out_features = view.out_features();
  in_features = view.in_features();
  const int64_t stored = view.block_count() * pattern.block.rows * pattern.block.cols;
  values = DeviceArray<__nv_bfloat16>(std::max<int64_t>(stored, 128 * 128));
  gradient = DeviceArray<float>(stored);
  y = DeviceArray<__nv_bfloat16>(tokens * out_features);
  dx = DeviceArray<__nv_bfloat16>(tokens * in_features);
  FillRandom(values.get(), stored, fill, 0.02f, seed);
  for (int s = 0; s < kSets; ++s) {
    x[s] = DeviceArray<__nv_bfloat16>(tokens * in_features);
    dy[s] = DeviceArray<__nv_bfloat16>(tokens * out_features);
    FillRandom(x[s].get(), tokens * in_features, fill, 1.0f, seed + 10 + s);
    FillRandom(dy[s].get(), tokens * out_features, fill, 1.0f, seed + 20 + s);
  }
  path_ == Path::kHopper ? PrepareHopper(tuning) : PrepareGeneral();
  CUDA_CHECK(cudaDeviceSynchronize());
}

void BlockSparseProblem::PrepareGeneral() {
  // The transposed index: each block column's blocks, in increasing row.
  std::vector<int> offsets(pattern.cols + 1, 0), rows(pattern.col.size()),
      slots(pattern.col.size());
  for (const int col : pattern.col) ++offsets[col + 1];
  for (int j = 0; j < pattern.cols; ++j) offsets[j + 1] += offsets[j];
  std::vector<int> next(offsets.begin(), offsets.end() - 1);
  for (int i = 0; i < pattern.rows; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      const int at = next[pattern.col[p]]++;
      rows[at] = i;
      slots[at] = p;
    }
  }
  forward_index_ = {DeviceArray<int>(pattern.row_begin), DeviceArray<int>(pattern.col), {}};
  input_grad_index_ = {DeviceArray<int>(offsets), DeviceArray<int>(rows), DeviceArray<int>(slots)};
  general_workspace_ = DeviceArray<float>(
      SddmmMmaWorkspaceBytes(GeneralWeightGradDesc(), MultiprocessorCount()) / sizeof(float));
}

void BlockSparseProblem::PrepareHopper(Tuning tuning) {
  const BsrPattern view = pattern.view();
  forward_config = Prepare(false, tuning, &forward_);
  input_grad_config = Prepare(true, tuning, &input_grad_);

  weight_grad_config_ = ConfigSddmmBsrSm90({.block = pattern.block}, MultiprocessorCount());
  const SddmmSchedule schedule = BuildSddmmSchedule(view, tokens, weight_grad_config_.workers);
  orientation_ = schedule.orientation;
  units_ = DeviceArray<SddmmUnit>(schedule.units);
  segments_ = DeviceArray<SddmmSegment>(schedule.segments);
  segment_begin_ = DeviceArray<int32_t>(schedule.worker_begin);
  reductions_ = DeviceArray<SddmmReduction>(schedule.reductions);
  partials_ = DeviceArray<float>(SddmmPartialBytes(schedule.slot_count) / 4);
}

SpmmDesc BlockSparseProblem::Desc(bool transposed) const {
  return {.block = pattern.block,
          .transposed = transposed,
          .tokens = tokens,
          .out_features = out_features,
          .in_features = in_features,
          .block_count = pattern.view().block_count(),
          .stored_rows = pattern.view().value_extent() / pattern.block.cols};
}

SpmmConfig BlockSparseProblem::Prepare(bool transposed, Tuning tuning, SpmmLists* lists) {
  const SpmmDesc desc = Desc(transposed);
  SpmmConfig config = ConfigSpmmBsrSm90(desc, MultiprocessorCount());
  if (tuning.cluster > 0) {
    config.tiling.tile_tokens = config.tiling.tile_tokens / config.cluster * tuning.cluster;
    config.cluster = tuning.cluster;
    config.tiling.workers = MultiprocessorCount() / tuning.cluster;
  }
  if (tuning.token_group > 0) config.tiling.token_group = tuning.token_group;
  const SpmmSchedule schedule =
      BuildSpmmSchedule(pattern.view(), transposed, tokens, config.tiling);
  lists->steps = DeviceArray<SpmmStep>(schedule.steps);
  lists->tiles = DeviceArray<SpmmTile>(schedule.tiles);
  lists->worker_begin = DeviceArray<int32_t>(schedule.worker_begin);
  return config;
}

void BlockSparseProblem::RunSpmm(bool transposed, const __nv_bfloat16* input, __nv_bfloat16* output,
                                 cudaStream_t stream) {
  if (path_ == Path::kGeneral) return RunGeneralSpmm(transposed, input, output, stream);
  const SpmmLists& lists = transposed ? input_grad_ : forward_;
  const SpmmDesc desc = Desc(transposed);
  LaunchSpmmBsrSm90(desc, transposed ? input_grad_config : forward_config,
                    {.values = values.get(),
                     .input = input,
                     .output = output,
                     .input_stride = desc.input_width(),
                     .output_stride = desc.output_width(),
                     .steps = lists.steps.get(),
                     .tiles = lists.tiles.get(),
                     .worker_begin = lists.worker_begin.get()},
                    stream);
}

void BlockSparseProblem::RunGeneralSpmm(bool transposed, const __nv_bfloat16* input,
                                        __nv_bfloat16* output, cudaStream_t stream) {
  const SpmmIndex& index = transposed ? input_grad_index_ : forward_index_;
  const SpmmMmaDesc desc{.block = pattern.block,
                         .transposed = transposed,
                         .tokens = tokens,
                         .out_features = out_features,
                         .in_features = in_features};
  LaunchSpmmBsrMma(desc,
                   {.values = values.get(),
                    .offsets = index.offsets.get(),
                    .panels = index.panels.get(),
                    .slots = index.slots.get(),
                    .input = input,
                    .input_stride = desc.input_width(),
                    .output = output,
                    .output_stride = desc.output_width()},
                   stream);
}

SddmmMmaDesc BlockSparseProblem::GeneralWeightGradDesc() const {
  return {.block = pattern.block,
          .tokens = tokens,
          .out_features = out_features,
          .in_features = in_features,
          .block_count = pattern.view().block_count()};
}

void BlockSparseProblem::RunGeneralWeightGrad(int set, bool accumulate, cudaStream_t stream) {
  LaunchSddmmBsrMma(GeneralWeightGradDesc(), MultiprocessorCount(),
                    {.row_offsets = forward_index_.offsets.get(),
                     .columns = forward_index_.panels.get(),
                     .output_grad = dy[set].get(),
                     .output_grad_stride = out_features,
                     .input = x[set].get(),
                     .input_stride = in_features,
                     .gradient = gradient.get(),
                     .accumulate = accumulate,
                     .workspace = reinterpret_cast<std::byte*>(general_workspace_.get())},
                    stream);
}

void BlockSparseProblem::RunForward(int set, cudaStream_t stream) {
  RunSpmm(false, x[set].get(), y.get(), stream);
}

void BlockSparseProblem::RunInputGrad(int set, cudaStream_t stream) {
  RunSpmm(true, dy[set].get(), dx.get(), stream);
}

void BlockSparseProblem::RunWeightGrad(int set, bool accumulate, cudaStream_t stream) {
  if (path_ == Path::kGeneral) return RunGeneralWeightGrad(set, accumulate, stream);
  LaunchSddmmBsrSm90({.block = pattern.block,
                      .tokens = tokens,
                      .out_features = out_features,
                      .in_features = in_features},
                     weight_grad_config_,
                     {.output_grad = dy[set].get(),
                      .input = x[set].get(),
                      .gradient = gradient.get(),
                      .partials = partials_.get(),
                      .output_grad_stride = out_features,
                      .input_stride = in_features,
                      .accumulate = accumulate,
                      .orientation = orientation_,
                      .units = units_.get(),
                      .segments = segments_.get(),
                      .worker_begin = segment_begin_.get(),
                      .reductions = reductions_.get(),
                      .reduction_count = static_cast<int>(reductions_.size())},
                     stream);
}

DeviceArray<__nv_bfloat16> BlockSparseProblem::DenseWeight() const {
  DeviceArray<__nv_bfloat16> dense(out_features * in_features);
  CUDA_CHECK(cudaMemset(dense.get(), 0, dense.size() * sizeof(__nv_bfloat16)));
  std::vector<int> block_row;
  for (int i = 0; i < pattern.rows; ++i) {
    block_row.insert(block_row.end(), pattern.row_begin[i + 1] - pattern.row_begin[i], i);
  }
  if (block_row.empty()) return dense;
  const DeviceArray<int> rows(block_row), cols(pattern.col);
  ScatterBlocksKernel<<<static_cast<int>(block_row.size()), 256>>>(
      values.get(), rows.get(), cols.get(), pattern.block.rows, pattern.block.cols, in_features,
      dense.get());
  CUDA_CHECK(cudaDeviceSynchronize());
  return dense;
}

}  // namespace filigree::bench
