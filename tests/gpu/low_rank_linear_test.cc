// Linears with low-rank factors and with weights formed from what is stored, alone and in groups,
// on both devices from the same flat buffers: outputs, input gradients and every parameter's
// gradient.
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/math.h"
#include "tests/gpu/gpu_testing.h"
#include "trainer/linear/linear.h"

namespace filigree {
namespace {

struct LinearCase {
  std::string name;
  SparsitySpec sparsity;
  std::vector<int64_t> outs;  // of a group's parts
  int64_t in = 0, tokens = 0;
  int64_t alignment = 1;  // that the outputs' widths are padded to
};

SparsitySpec Spec(const char* parameterisation, int64_t rank, double sparsity) {
  SparsitySpec spec;
  spec.parameterisation = parameterisation;
  spec.rank = rank;
  spec.alpha = 2.0 * static_cast<double>(rank);
  spec.sparsity = sparsity;
  spec.micro_batch_tokens = 512;
  return spec;
}

SparsitySpec Blocks(int64_t rank, int block_out, int block_in, LowRankCompute compute) {
  SparsitySpec spec = Spec("sparse_plus_low_rank", rank, 0.75);
  spec.sparse_part = SparsePart::kBlocks;
  spec.block_out = block_out;
  spec.block_in = block_in;
  spec.compute = compute;
  return spec;
}

SparsitySpec Kept(SparsitySpec spec) {
  spec.keep_rebuilt = true;
  return spec;
}

std::vector<LinearCase> Cases() {
  const auto factored = LowRankCompute::kFactored, rebuilt = LowRankCompute::kRebuild;
  return {
      {"factored, joined", Blocks(64, 128, 128, factored), {256, 256, 256}, 384, 300},
      {"factored, joined, blocks of 64", Blocks(128, 64, 64, factored), {320, 320}, 256, 520},
      {"factored, parts of different widths",
       Blocks(64, 64, 64, factored),
       {256, 64, 64},
       256,
       256},
      {"factored, alone", Blocks(64, 128, 64, factored), {384}, 512, 300},
      {"factored, rank 8", Blocks(8, 64, 64, factored), {128, 128}, 192, 200},
      {"factored, edge blocks of 32", Blocks(24, 32, 32, factored), {104}, 72, 130},
      {"rebuilt, blocks", Blocks(64, 64, 64, rebuilt), {256, 256}, 192, 200},
      {"rebuilt, unstructured", Spec("sparse_plus_low_rank", 8, 0.97), {128, 128, 128}, 264, 200},
      {"rebuilt, padded", Spec("sparse_plus_low_rank", 16, 0.9), {117, 117}, 64, 100, 8},
      {"rebuilt, kept", Kept(Spec("sparse_plus_low_rank", 64, 0.97)), {256, 256}, 128, 130},
      {"rebuilt, kept, padded", Kept(Spec("sparse_plus_low_rank", 8, 0.5)), {61}, 40, 77, 8},
      {"factored, rank 11", Blocks(11, 64, 64, factored), {128, 128}, 192, 200},
      {"rebuilt, rank 13", Spec("sparse_plus_low_rank", 13, 0.9), {64, 72}, 64, 100},
      {"low rank 5", Spec("low_rank", 5, 0), {128, 64}, 96, 130},
      {"masked", Spec("masked", 0, 0.75), {117, 64}, 96, 130, 8},
      {"low rank", Spec("low_rank", 24, 0), {128, 64}, 96, 130},
      {"dense, joined", Spec("dense", 0, 0), {256, 128, 128}, 384, 300},
      {"dense, joined, padded", Spec("dense", 0, 0), {125, 125}, 64, 130, 8},
      {"dense, apart", Spec("dense", 0, 0), {40, 40}, 24, 130},
      {"cola", Spec("cola", 32, 0), {128, 64}, 96, 130},
  };
}

// A group's parameters in one flat buffer, each at a multiple of 256 elements.
class GpuLinearTest : public GpuTest {
 protected:
  // Pads as the GPU does.
  static CpuBackend& reference() {
    static CpuDevice device(DType::kF64, gpu().device().row_alignment());
    static CpuBackend backend(device);
    return backend;
  }

  static LinearGroup MakeGroup(const LinearCase& c, Backend& backend) {
    std::vector<std::unique_ptr<Linear>> parts;
    std::vector<LinearSpec> specs;
    const Parameterisation* row = FindParameterisation(c.sparsity.parameterisation);
    for (size_t i = 0; i < c.outs.size(); ++i) {
      const LinearSpec spec = {.name = "part" + std::to_string(i),
                               .out = c.outs[i],
                               .in = c.in,
                               .out_alignment = c.alignment};
      const Status valid = row->validate(spec, c.sparsity);
      CHECK(valid.ok()) << valid.message();
      parts.push_back(
          row->create(spec, c.sparsity, row->draw_layout(spec, c.sparsity, 1), backend));
      specs.push_back(spec);
    }
    return LinearGroup(std::move(parts), std::move(specs), backend);
  }

  struct Segments {
    std::vector<std::vector<std::pair<int64_t, int64_t>>> of_part;  // begin, count
    std::vector<double> values;
  };
  // As the flat buffer lays them out: weights first, then the thin factors.
  static Segments Place(const LinearGroup& group) {
    Segments segments;
    segments.of_part.resize(group.parts().size());
    Mirror noise = Mirror::Random(1, 1 << 20, DType::kBF16, 9, 0.1);
    const std::vector<double> draws = noise.Reference();
    for (const bool thin : {false, true}) {
      for (size_t i = 0; i < group.parts().size(); ++i) {
        const std::vector<Parameter> parameters = group.parts()[i]->Parameters();
        segments.of_part[i].resize(parameters.size());
        for (size_t p = 0; p < parameters.size(); ++p) {
          if ((parameters[p].factor != FactorKind::kNone) != thin) continue;
          const auto begin = static_cast<int64_t>(segments.values.size());
          const int64_t count = parameters[p].segment_count();
          const std::vector<int64_t> logical = parameters[p].layout.LogicalIndices();
          for (int64_t k = 0; k < AlignUp(count, 256); ++k) {
            const bool live = k < static_cast<int64_t>(logical.size()) && logical[k] >= 0;
            segments.values.push_back(live ? draws[(begin + k) % draws.size()] : 0.0);
          }
          segments.of_part[i][p] = {begin, count};
        }
      }
    }
    return segments;
  }

  static void Run(const LinearCase& c) {
    LinearGroup there = MakeGroup(c, gpu()), here = MakeGroup(c, reference());
    const Segments segments = Place(here);
    const auto count = static_cast<int64_t>(segments.values.size());
    Mirror values = Mirror::Of(1, count, DType::kBF16, segments.values);
    Mirror grads = Mirror::Of(1, count, DType::kF32, std::vector<double>(count, 0.0));
    Mirror x = Mirror::Random(c.tokens, c.in, DType::kBF16, 2);
    // Padding of outputs and of their gradients is zero.
    std::vector<double> gradient =
        Mirror::Random(c.tokens, here.out(), DType::kBF16, 3).Reference();
    int64_t begin = 0;
    for (int64_t out : c.outs) {
      for (int64_t t = 0; t < c.tokens; ++t) {
        for (int64_t j = out; j < AlignUp(out, c.alignment); ++j) {
          gradient[t * here.out() + begin + j] = 0;
        }
      }
      begin += AlignUp(out, c.alignment);
    }
    Mirror dy = Mirror::Of(c.tokens, here.out(), DType::kBF16, gradient);
    Mirror y = Mirror::Output(c.tokens, here.out(), DType::kBF16);
    Mirror dx = Mirror::Output(c.tokens, c.in, DType::kBF16);
    const int64_t width = std::max<int64_t>(here.inner_width(), 1);
    Mirror inner = Mirror::Output(c.tokens, width, DType::kBF16, 8 - width % 8);
    Mirror dinner = Mirror::Output(c.tokens, width, DType::kBF16, 8 - width % 8);
    const auto run = [&](LinearGroup& group, bool on_gpu) {
      const auto view = [&](Mirror& m) { return on_gpu ? m.gpu() : m.cpu(); };
      Stream& queue = on_gpu ? stream() : cpu_stream();
      Backend& backend = on_gpu ? static_cast<Backend&>(gpu()) : reference();
      const DType dtype = on_gpu ? DType::kBF16 : DType::kF64;
      const int64_t scratch_bytes = group.memory(dtype, false).scratch_bytes;
      DeviceBuffer memory;
      TensorView scratch;
      if (scratch_bytes > 0) {
        memory = backend.device().Allocate(scratch_bytes, "test");
        scratch = memory.View(dtype, scratch_bytes / static_cast<int64_t>(SizeOf(dtype)));
      }
      for (size_t i = 0; i < group.parts().size(); ++i) {
        std::vector<BoundParameter> bound;
        for (const auto& [first, size] : segments.of_part[i]) {
          bound.push_back(
              {view(values).Flat().Range(first, size), view(grads).Flat().Range(first, size)});
        }
        group.parts()[i]->Bind(bound, scratch);
      }
      group.JoinParts(scratch);
      group.Materialize(queue);
      const bool between = group.inner_width() > 0;
      group.Forward(view(x), view(y), between ? view(inner) : TensorView(), {}, queue);
      // Twice: gradients add, the input's is overwritten.
      for (int i = 0; i < 2; ++i) {
        InnerActivations activations;
        if (between) activations = {view(inner), view(dinner)};
        group.Backward(view(x), view(dy), activations, {.dx = view(dx)}, queue);
      }
      queue.Synchronize();
    };
    run(there, true);
    run(here, false);
    // What lies between two products, or a rebuilt weight, is rounded to bf16.
    constexpr double kFloor = 8e-3;
    ExpectParity(y, c.name + ": y", kFloor);
    ExpectParity(dx, c.name + ": dx", kFloor);
    // Each parameter on its own: they differ in size.
    const std::vector<double> found = grads.Download(), expected = grads.Reference();
    for (size_t i = 0; i < segments.of_part.size(); ++i) {
      for (size_t p = 0; p < segments.of_part[i].size(); ++p) {
        const auto [first, size] = segments.of_part[i][p];
        double error = 0, square = 0;
        for (int64_t k = first; k < first + size; ++k) {
          error += (found[k] - expected[k]) * (found[k] - expected[k]);
          square += expected[k] * expected[k];
        }
        EXPECT_GT(square, 0);
        EXPECT_LE(error, kFloor * kFloor * square)
            << c.name << ": gradient of parameter " << p << " of part " << i;
      }
    }
    // What lies between the parameters is nobody's.
    std::vector<bool> owned(count, false);
    for (const auto& part : segments.of_part) {
      for (const auto& [first, size] : part) {
        std::fill(owned.begin() + first, owned.begin() + first + size, true);
      }
    }
    for (int64_t k = 0; k < count; ++k) {
      if (owned[k]) continue;
      ASSERT_EQ(found[k], 0) << c.name << ": element " << k;
    }
  }
};

TEST_F(GpuLinearTest, GroupsOfEveryForm) {
  for (const LinearCase& c : Cases()) Run(c);
}

}  // namespace
}  // namespace filigree
