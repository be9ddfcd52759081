#include "launch/commands/kernel_timing.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"

namespace filigree {
namespace {

constexpr int kSets = 2;
constexpr int kWarmUp = 5;
constexpr double kWeightScale = 0.02;

// Normal numbers, repeated with a period that no width divides: zeros would draw less power and
// flatter the device, and drawing each number anew would take minutes.
class NormalNumbers {
 public:
  NormalNumbers(Device& device, double scale) : device_(device) {
    std::vector<float> drawn(kPeriod);
    for (int64_t i = 0; i < kPeriod; ++i) {
      drawn[i] = static_cast<float>(scale * RandomNormal(0, RngStream("bench kernels"), i));
    }
    if (device.compute_dtype() == DType::kBF16) {
      halves_ = std::vector<BFloat16>(drawn.begin(), drawn.end());
    } else {
      floats_ = std::move(drawn);
    }
  }

  // Another stretch of them for each `set`.
  void Fill(TensorView flat, int set, Stream& stream) const {
    const void* data = halves_.empty() ? static_cast<const void*>(floats_.data())
                                       : static_cast<const void*>(halves_.data());
    const ConstTensorView period(data, flat.dtype(), {kPeriod});
    int64_t from = kPeriod * set / kSets;
    for (int64_t done = 0; done < flat.size();) {
      const int64_t count = std::min(kPeriod - from, flat.size() - done);
      device_.CopyAsync(flat.Range(done, count), period.Range(from, count), stream);
      done += count;
      from = 0;
    }
    stream.Synchronize();
  }

 private:
  static constexpr int64_t kPeriod = 1048573;  // a prime
  Device& device_;
  std::vector<float> floats_;
  std::vector<BFloat16> halves_;
};

// Device memory, seen as a matrix of any shape that it holds.
class Matrix {
 public:
  Matrix(Device& device, DType dtype, int64_t count)
      : dtype_(dtype), buffer_(device.Allocate(count * SizeOf(dtype), "scratch")) {}
  TensorView flat(int64_t count) const { return buffer_.View(dtype_, count); }
  TensorView view(int64_t rows, int64_t cols) const {
    return flat(rows * cols).Reshape({rows, cols});
  }

 private:
  DType dtype_;
  DeviceBuffer buffer_;
};

using Products = std::array<std::function<void(int set)>, 3>;

// The operands of one case and the products over them.
class Problem {
 public:
  Problem(const KernelCase& c, Backend& backend, Stream& stream)
      : case_(c),
        backend_(backend),
        stream_(stream),
        layout_(backend.PrepareLayout(LayoutOf(c))),
        values_(New(std::max<int64_t>(stored(), 1))),
        weight_(New(c.out * c.in)),
        dense_grads_(New(c.out * c.in)),
        y_(New(c.tokens * c.out)),
        dx_(New(c.tokens * c.in)),
        grads_(backend.device(), DType::kF32, std::max<int64_t>(stored(), 1)) {
    const NormalNumbers weights(backend.device(), kWeightScale), inputs(backend.device(), 1);
    weights.Fill(values_.flat(stored()), 0, stream);
    weights.Fill(weight_.flat(c.out * c.in), 0, stream);
    for (int set = 0; set < kSets; ++set) {
      x_.push_back(New(c.tokens * c.in));
      dy_.push_back(New(c.tokens * c.out));
      inputs.Fill(x_[set].flat(c.tokens * c.in), set, stream);
      inputs.Fill(dy_[set].flat(c.tokens * c.out), set, stream);
    }
  }

  int64_t stored() const { return layout_->layout().stored_count(); }

  Products Blocked() {
    const int64_t t = case_.tokens, n = case_.out, k = case_.in;
    return {[=, this](int set) {
              backend_.Spmm({.weight = layout_.get(),
                             .values = values_.flat(stored()),
                             .x = x_[set].view(t, k),
                             .y = y_.view(t, n)},
                            stream_);
            },
            [=, this](int set) {
              backend_.SpmmTransposed({.weight = layout_.get(),
                                       .values = values_.flat(stored()),
                                       .dy = dy_[set].view(t, n),
                                       .dx = dx_.view(t, k)},
                                      stream_);
            },
            [=, this](int set) {
              backend_.Sddmm({.weight = layout_.get(),
                              .dy = dy_[set].view(t, n),
                              .x = x_[set].view(t, k),
                              .dvalues = grads_.flat(stored()),
                              .accumulate = false},
                             stream_);
            }};
  }

  // With the inputs' width cut to `in` in the first two products, the outputs' to `out` in the
  // last.
  Products Dense(int64_t out, int64_t in) {
    const int64_t t = case_.tokens, n = case_.out, k = case_.in;
    return {[=, this](int set) {
              backend_.MatMul({.a = x_[set].view(t, in),
                               .b = weight_.view(n, in),
                               .out = y_.view(t, n),
                               .transpose_b = true},
                              stream_);
            },
            [=, this](int set) {
              backend_.MatMul(
                  {.a = dy_[set].view(t, n), .b = weight_.view(n, in), .out = dx_.view(t, in)},
                  stream_);
            },
            [=, this](int set) {
              backend_.MatMul({.a = dy_[set].view(t, out),
                               .b = x_[set].view(t, k),
                               .out = dense_grads_.view(out, k),
                               .transpose_a = true},
                              stream_);
            }};
  }

 private:
  Matrix New(int64_t count) const {
    return Matrix(backend_.device(), backend_.device().compute_dtype(), count);
  }

  const KernelCase case_;
  Backend& backend_;
  Stream& stream_;
  std::unique_ptr<PreparedLayout> layout_;
  Matrix values_, weight_, dense_grads_, y_, dx_, grads_;
  std::vector<Matrix> x_, dy_;
};

double Median(std::vector<double> samples) {
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

// Four events around three products, for every repeat.
class Stopwatch {
 public:
  Stopwatch(Device& device, int repeats) {
    for (int i = 0; i < 4 * repeats; ++i) events_.push_back(device.NewTimedEvent());
  }
  void Run(const Products& products, int repeat, Stream& stream) {
    for (int i = 0; i < 3; ++i) {
      events_[4 * repeat + i]->Record(stream);
      products[i](repeat % kSets);
    }
    events_[4 * repeat + 3]->Record(stream);
  }
  // Once the stream is done.
  ProductTimes Medians() const {
    ProductTimes times;
    for (size_t product = 0; product < times.size(); ++product) {
      const size_t begin = product == 3 ? 0 : product, end = product == 3 ? 3 : product + 1;
      std::vector<double> samples;
      for (size_t i = 0; i < events_.size(); i += 4) {
        samples.push_back(events_[i + end]->MillisecondsSince(*events_[i + begin]));
      }
      times[product] = Median(std::move(samples));
    }
    return times;
  }

 private:
  std::vector<std::unique_ptr<Event>> events_;
};

// A share of a width in multiples of 64, which products run at full speed.
int64_t PartOf(int64_t width, double density) {
  const auto part = static_cast<int64_t>((static_cast<double>(width) * density + 32) / 64) * 64;
  return std::clamp<int64_t>(part, std::min<int64_t>(64, width), width);
}

}  // namespace

SparseLayout LayoutOf(const KernelCase& c) {
  const auto draw = c.balanced ? &RandomBalancedBlocks : &RandomUniformBlocks;
  return draw(c.out, c.in, c.block_out, c.block_in, c.density, c.seed, "bench kernels");
}

KernelTimes TimeKernels(const KernelCase& c, int repeats, Backend& backend, Stream& stream) {
  Problem problem(c, backend, stream);
  const Products contenders[] = {problem.Blocked(), problem.Dense(c.out, c.in),
                                 problem.Dense(PartOf(c.out, c.density), PartOf(c.in, c.density))};
  std::vector<Stopwatch> watches;
  for (size_t i = 0; i < std::size(contenders); ++i) {
    watches.emplace_back(backend.device(), repeats);
  }
  for (int i = -kWarmUp; i < repeats; ++i) {
    for (size_t j = 0; j < std::size(contenders); ++j) {
      watches[j].Run(contenders[j], std::max(i, 0), stream);  // warm-up records are overwritten
    }
  }
  stream.Synchronize();
  return {watches[0].Medians(), watches[1].Medians(), watches[2].Medians(), problem.stored()};
}

double MeasureMemoryBandwidth(Backend& backend, Stream& stream) {
  Device& device = backend.device();
  // Far beyond any cache of the device.
  const int64_t rows = 1024, cols = device.compute_dtype() == DType::kBF16 ? 131072 : 8192;
  const Matrix a(device, device.compute_dtype(), rows * cols),
      b(device, device.compute_dtype(), rows * cols),
      out(device, device.compute_dtype(), rows * cols);
  for (const Matrix* matrix : {&a, &b}) device.ZeroAsync(matrix->flat(rows * cols), stream);
  const auto begin = device.NewTimedEvent(), end = device.NewTimedEvent();
  double best = 1e30;
  for (int i = 0; i < 5; ++i) {
    begin->Record(stream);
    backend.Add({.a = a.view(rows, cols), .b = b.view(rows, cols), .out = out.view(rows, cols)},
                stream);
    end->Record(stream);
    stream.Synchronize();
    best = std::min(best, end->MillisecondsSince(*begin));
  }
  const auto bytes = static_cast<double>(3 * out.flat(rows * cols).bytes());
  return bytes / (best * 1e-3);
}

}  // namespace filigree
