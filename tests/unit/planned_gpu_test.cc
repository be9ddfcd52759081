// `plan` for a GPU on a machine without one: against what H100s held.
#include "kernels/planned/planned_gpu.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/cuda/block_schedule.h"
#include "kernels/sparse/random_layout.h"
#include "trainer/config/run_config.h"
#include "trainer/linear/linear.h"
#include "trainer/model/model.h"
#include "trainer/planner.h"

namespace filigree {
namespace {

PhasePlan PlanFor(const std::string& config, const std::vector<std::string>& overrides,
                  int ranks = 1, bool deterministic = false) {
  KnownNames known;
  for (const Parameterisation& row : Parameterisations()) {
    known.parameterisations.emplace_back(row.name);
  }
  const auto loaded = LoadRunConfig(FILIGREE_SOURCE_DIR "/" + config, overrides, known);
  CHECK(loaded.ok()) << loaded.status().message();
  PlannedGpu gpu(*FindGpuCard("h100"));
  PlannedGpuBackend backend(gpu);
  backend.set_deterministic(deterministic);
  return PlanRun(loaded->spec, ranks, backend).phases[0];
}

const std::string kModels = "tests/bench/models/";

std::string Blocks(const std::string& sparsity, int out, int in) {
  return "sparsity { parameterisation: 'block_sparse' sparsity: " + sparsity +
         " block_out: " + std::to_string(out) + " block_in: " + std::to_string(in) + " }";
}

// The peak of the device's account after steps of `bench step` on an H100 80GB HBM3: that of
// docs/results/step_*_h100.md and sltrain_h100.md, of later runs of the same code to the byte.
struct Recorded {
  std::string config, overrides;
  double gigabytes = 0;
  double within = 0;  // gigabytes
  int ranks = 1;
};

// What the recorded llamas held beside: the gradient of SwiGLU's output, which is no array any
// more.
double HiddenGradient(int64_t tokens, int64_t padded_feed_forward) {
  return static_cast<double>(tokens * padded_feed_forward * 2) / 1e9;
}

// What the recorded GPT-2 with masks held beside: copies of the query's, key's and value's biases,
// which are read where they lie now.
double BiasCopies(int64_t layers, int64_t width) {
  return static_cast<double>(layers * 3 * width * 2) / 1e9;
}

// Dense steps: all but cuDNN's scratch is counted, and that follows what was seen here.
constexpr double kCounted = 1e-6;
// The kernels' work lists are counted for the smaller of their tiles.
constexpr double kBlocks = 4e-3;
// Read from a console with two decimals.
constexpr double kTwoDecimals = 6e-3;

void ExpectMemory(const std::vector<Recorded>& records) {
  for (const Recorded& record : records) {
    const PhasePlan plan = PlanFor(record.config, {record.overrides}, record.ranks);
    EXPECT_NEAR(static_cast<double>(plan.memory_total()) / 1e9, record.gigabytes, record.within)
        << record.config << " " << record.overrides << " on " << record.ranks;
  }
}

TEST(PlannedGpuTest, DenseStepsHoldWhatAnH100Held) {
  const std::string pure = " optimizer { state_dtype: BF16 } parallel { grad_dtype: BF16 }";
  const std::string recompute = " model { recompute: ACTIVATIONS }";
  ExpectMemory({
      {kModels + "gpt3_xl.textproto", "", 52.343709840, kCounted},
      {kModels + "gpt3_xl.textproto", pure, 39.19, kTwoDecimals},
      {kModels + "gpt3_xl.textproto", pure + recompute, 29.924491408, kCounted},
      {kModels + "gpt3_xl.textproto", recompute, 43.08, kTwoDecimals},
      {kModels + "llama_1b.textproto", "", 52.334399760 - HiddenGradient(16384, 5464), kCounted},
      {kModels + "llama_1b3.textproto", "", 52.646875280 - HiddenGradient(16384, 5504), kCounted},
      {kModels + "gpt2_124m.textproto", "", 14.502745232, kCounted},
  });
}

TEST(PlannedGpuTest, SparseStepsHoldWhatAnH100Held) {
  const std::string pure = " optimizer { state_dtype: BF16 } parallel { grad_dtype: BF16 }";
  ExpectMemory({
      {kModels + "gpt3_xl.textproto", Blocks("0.75", 128, 128), 36.041453712, kBlocks},
      {kModels + "gpt3_xl.textproto", Blocks("0.5", 128, 128), 41.478875280, kBlocks},
      {kModels + "gpt3_xl.textproto", Blocks("0.75", 128, 128) + pure, 31.942955152, kBlocks},
      {kModels + "llama_1b3.textproto", Blocks("0.75", 128, 128),
       36.259684496 - HiddenGradient(16384, 5504), kBlocks},
      {kModels + "gpt2_124m.textproto", "sparsity { parameterisation: 'masked' sparsity: 0.75 }",
       13.573588112 - BiasCopies(12, 768), kCounted},
      {"configs/sltrain_7b.textproto", "batch { tokens_per_step: 256 micro_batch_sequences: 1 }",
       15.27 - HiddenGradient(256, 11008), kTwoDecimals},
  });
}

// Beside a dense copy, two bytes a cell, two of four values, their places and a mask, ten bits a
// cell, for each side that sparse tensor cores may sum over.
TEST(PlannedGpuTest, TwoFourWeightsHaveCompressedForms) {
  constexpr int64_t kCells = int64_t{12} * 12 * 768 * 768;
  const auto copies = [](const std::string& sparsity, bool deterministic) {
    return PlanFor(kModels + "gpt2_124m.textproto",
                   {"sparsity { parameterisation: 'n_m' " + sparsity + " }"}, 1, deterministic)
        .memory_bytes.at("compute_copies");
  };
  EXPECT_EQ(copies("n: 2 m: 4", false), kCells * 2 + kCells / 8 * 10);
  EXPECT_EQ(copies("n: 2 m: 4 transposable: true", false), kCells * 2 + kCells / 4 * 10);
  EXPECT_EQ(copies("n: 2 m: 4", true), kCells * 2);
  EXPECT_EQ(copies("n: 4 m: 8", false), kCells * 2);
}

// Two GPUs of one host that copy each other's memory.
TEST(PlannedGpuTest, TwoGpusHoldWhatTwoHeld) {
  ExpectMemory({{kModels + "gpt2_124m.textproto", "batch { tokens_per_step: 65536 }", 13.78,
                 kTwoDecimals, 2}});
}

TEST(PlannedGpuTest, CardsHaveNamesAndTheirOwnKernels) {
  for (const NamedGpuCard& named : GpuCards()) EXPECT_EQ(FindGpuCard(named.key), &named.card);
  EXPECT_EQ(FindGpuCard("v100"), nullptr);
  PlannedGpu hopper(*FindGpuCard("h100")), ampere(*FindGpuCard("a100"));
  PlannedGpuBackend on_hopper(hopper), on_ampere(ampere);
  const SparseLayout layout = RandomBalancedBlocks(512, 512, 128, 128, 0.5, 1, "weight");
  const auto a = on_hopper.PrepareLayout(layout), b = on_hopper.PrepareLayout(layout);
  const std::vector<const PreparedLayout*> parts = {a.get(), b.get()};
  const std::vector<int64_t> begins = {0, layout.stored_count()};
  const auto joined = on_hopper.PrepareGroup(parts, begins);
  ASSERT_NE(joined, nullptr);
  EXPECT_EQ(joined->layout().out(), 1024);
  EXPECT_EQ(joined->bytes(), 0u);
  EXPECT_EQ(on_ampere.PrepareGroup(parts, begins), nullptr);
  // 5 offsets of 4 bytes and 8 columns of 2, each from a multiple of 256 bytes.
  EXPECT_EQ(a->bytes(), 512u);
  // Too few tokens for Hopper's kernels: both directions' indices, five arrays.
  EXPECT_EQ(a->step_use(64, false).held_bytes, 5 * 256);
  EXPECT_EQ(on_ampere.PrepareLayout(layout)->step_use(4096, false).held_bytes, 5 * 256);
}

// The work lists as the CUDA backend uploads them, each array from a multiple of 256 bytes.
template <typename... Lists>
int64_t UploadedBytes(const Lists&... lists) {
  return (... + AlignUp(static_cast<int64_t>(lists.size() * sizeof(lists[0])), 256));
}

TEST(PlannedGpuTest, WorkListsAreCountedAsTheyAreBuilt) {
  PlannedGpu gpu(*FindGpuCard("h100"));
  PlannedGpuBackend backend(gpu);
  constexpr int64_t kTokens = 5000;
  for (const auto& [block_out, block_in] :
       std::vector<std::pair<int, int>>{{128, 128}, {128, 64}, {64, 128}, {64, 64}}) {
    const SparseLayout layout =
        RandomUniformBlocks(1024, 2048, block_out, block_in, 0.3, 7, "weight");
    const std::vector<int> row_begin(layout.row_offsets().begin(), layout.row_offsets().end());
    const std::vector<int> columns(layout.columns().begin(), layout.columns().end());
    const BsrPattern pattern = {{block_out, block_in},
                                static_cast<int>(layout.grid_rows()),
                                static_cast<int>(layout.grid_cols()),
                                row_begin,
                                columns};
    int64_t products = 0;
    for (const bool transposed : {false, true}) {
      const int features = transposed ? block_in : block_out;
      const SpmmTiling tiling = {.tile_tokens = features == 128 ? 256 : 512};
      const SpmmSchedule product = BuildSpmmSchedule(pattern, transposed, kTokens, tiling);
      products += UploadedBytes(product.steps, product.tiles, product.worker_begin);
    }
    for (const bool sums : {false, true}) {
      const SddmmSchedule grads = BuildSddmmSchedule(pattern, kTokens, 132, {.column_sums = sums});
      EXPECT_EQ(grads.sum_segments.empty(), !sums || block_in > block_out);
      const int64_t held =
          products + UploadedBytes(grads.units, grads.segments, grads.worker_begin,
                                   grads.reductions, grads.sum_begin, grads.sum_segments);
      const auto use = backend.PrepareLayout(layout)->step_use(kTokens, sums);
      EXPECT_EQ(use.held_bytes, held) << block_out << "x" << block_in;
      // A CTA's accumulators for each slot; for each segment a part of the sums, of 128 columns.
      const int64_t parts = grads.sum_segments.empty() ? 0 : std::ssize(grads.segments);
      EXPECT_EQ(use.scratch_bytes, int64_t{grads.slot_count} * 256 * 128 * 4 + parts * 128 * 4);
    }
  }
}

// The query's, key's and value's biases are summed by the products with their joined weights where
// they lie one after the other; all others by someone else's pass.
TEST(PlannedGpuTest, BiasesOfJoinedWeightsAreSummedByTheirProduct) {
  PlannedGpu gpu(*FindGpuCard("h100"));
  PlannedGpuBackend backend(gpu);
  ModelSpec spec = {.family = ModelFamily::kGpt2,
                    .layers = 1,
                    .width = 512,
                    .heads = 8,
                    .kv_heads = 8,
                    .head_size = 64,
                    .feed_forward = 1024,
                    .vocab_size = 64,
                    .padded_vocab_size = 64,
                    .max_positions = 64};
  SparsitySpec blocks = {.include = {"layers.*"}, .parameterisation = "block_sparse"};
  blocks.sparsity = 0.5;
  blocks.block_out = blocks.block_in = 128;
  const auto model = Model::Create(spec, {blocks}, 1, {}, backend);
  constexpr int64_t kTokens = 4096;
  const auto use_of = [&](std::vector<SparseLayout> parts, bool sums) {
    std::vector<std::unique_ptr<PreparedLayout>> owned;
    std::vector<const PreparedLayout*> prepared;
    std::vector<int64_t> begins;
    for (const SparseLayout& part : parts) {
      begins.push_back(begins.empty() ? 0 : begins.back() + part.stored_count());
      owned.push_back(backend.PrepareLayout(part));
      prepared.push_back(owned.back().get());
    }
    if (parts.size() == 1) return owned[0]->step_use(kTokens, sums);
    return backend.PrepareGroup(prepared, begins)->step_use(kTokens, sums);
  };
  std::map<std::string, SparseLayout> layouts;
  for (const Parameter& p : model->parameters()) layouts.emplace(p.name, p.layout);
  const auto layer = [&](const std::string& name) {
    return layouts.at("layers.0." + name + ".weight");
  };
  for (const int64_t bucket : {int64_t{1} << 30, int64_t{1}}) {  // a bucket for all, and for each
    std::vector<SegmentSpec> segments;
    for (const Parameter& p : model->parameters()) {
      segments.push_back({.count = p.segment_count(), .group = p.decay ? 0 : 1});
    }
    const FlatLayout layout = FlatLayout::Build(segments, 1, bucket);
    const int64_t held =
        use_of({layer("attention.q"), layer("attention.k"), layer("attention.v")}, bucket > 1)
            .held_bytes +
        use_of({layer("attention.o")}, false).held_bytes +
        use_of({layer("mlp.up")}, false).held_bytes + use_of({layer("mlp.down")}, false).held_bytes;
    EXPECT_EQ(model->linear_step_use(kTokens, layout).held_bytes, held) << bucket;
  }
}

}  // namespace
}  // namespace filigree
