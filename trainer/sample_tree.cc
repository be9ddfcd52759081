#include "trainer/sample_tree.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "data/data_loader.h"
#include "kernels/base/check.h"

namespace filigree {
namespace {

template <typename T>
void AddOf(TensorView to, ConstTensorView from) {
  T* sum = to.As<T>();
  const T* more = from.As<T>();
  const int64_t count = to.size();
#pragma omp parallel for
  for (int64_t i = 0; i < count; ++i) sum[i] += more[i];
}

void Add(TensorView to, ConstTensorView from) {
  CHECK(to.dtype() == DType::kF32 || to.dtype() == DType::kF64) << NameOf(to.dtype());
  return to.dtype() == DType::kF32 ? AddOf<float>(to, from) : AddOf<double>(to, from);
}

}  // namespace

bool SumsInTree(const RunSpec& run, const Device& device) {
  return run.deterministic && device.name() == "cpu";
}

SampleTree::SampleTree(Device& device, std::vector<TensorView> arrays, int64_t samples,
                       Communicator& communicator)
    : device_(device),
      arrays_(std::move(arrays)),
      samples_(samples),
      communicator_(communicator),
      next_(PartitionSamples(samples, communicator.rank(), communicator.size()).begin) {}

// The fewest nodes that cover a rank's samples, from left to right.
std::vector<SampleTree::Node> SampleTree::NodesOf(int64_t samples, int rank, int ranks) {
  std::vector<Node> nodes;
  const SampleRange range = PartitionSamples(samples, rank, ranks);
  for (int64_t first = range.begin, end = range.begin + range.count; first < end;) {
    int level = std::bit_width(static_cast<uint64_t>(end - first)) - 1;
    if (first > 0) level = std::min(level, std::countr_zero(static_cast<uint64_t>(first)));
    nodes.push_back({.first = first, .level = level, .sums = {}});
    first += int64_t{1} << level;
  }
  return nodes;
}

int64_t SampleTree::NodesSent(int64_t samples, int ranks) {
  int64_t sent = 0;
  if (ranks == 1) return sent;
  for (int rank = 0; rank < ranks; ++rank) {
    sent += static_cast<int64_t>(NodesOf(samples, rank, ranks).size());
  }
  return sent;
}

int64_t SampleTree::NodesHeld(int64_t samples) {
  return 2 * std::bit_width(static_cast<uint64_t>(samples)) + 1;
}

void SampleTree::Allocate(Node* node) {
  for (const TensorView& array : arrays_) {
    node->sums.push_back(device_.Allocate(array.bytes(), "scratch"));
  }
}

TensorView SampleTree::Sum(const Node& node, size_t array) const {
  return node.sums[array].View(arrays_[array].dtype(), arrays_[array].size());
}

void SampleTree::Join() {
  const Node right = std::move(nodes_.back());
  nodes_.pop_back();
  Node& left = nodes_.back();
  for (size_t i = 0; i < arrays_.size(); ++i) Add(Sum(left, i), Sum(right, i));
  ++left.level;
}

void SampleTree::Push(Node node) {
  nodes_.push_back(std::move(node));
  while (nodes_.size() > 1) {
    const Node &left = nodes_[nodes_.size() - 2], &right = nodes_.back();
    const bool halves = left.level == right.level && (left.first >> left.level) % 2 == 0;
    if (!halves) return;
    Join();
  }
}

void SampleTree::TakeSample(Stream& stream) {
  Node leaf = {.first = next_++, .level = 0, .sums = {}};
  Allocate(&leaf);
  for (size_t i = 0; i < arrays_.size(); ++i) {
    device_.CopyAsync(Sum(leaf, i), arrays_[i], stream);
    device_.ZeroAsync(arrays_[i], stream);
  }
  stream.Synchronize();
  Push(std::move(leaf));
}

void SampleTree::Complete(Stream& stream) {
  std::vector<Node> own = std::exchange(nodes_, {});
  const int ranks = communicator_.size();
  const std::unique_ptr<Event> ready = device_.NewEvent();
  ready->Record(stream);
  auto mine = own.begin();
  for (int rank = 0; rank < ranks; ++rank) {
    for (Node& node : NodesOf(samples_, rank, ranks)) {
      const bool is_own = rank == communicator_.rank();
      if (is_own) {
        CHECK(mine != own.end() && mine->first == node.first && mine->level == node.level)
            << "node " << node.level << " at sample " << node.first << " was not summed";
        node = std::move(*mine++);
      } else {
        Allocate(&node);
      }
      for (size_t i = 0; i < arrays_.size() && ranks > 1; ++i) {
        communicator_.Broadcast(Sum(node, i), rank, *ready)->Wait(stream);
      }
      Push(std::move(node));
    }
  }
  // At the right edge halves are missing: what there is joins from the right.
  while (nodes_.size() > 1) Join();
  for (size_t i = 0; i < arrays_.size(); ++i) {
    device_.CopyAsync(arrays_[i], Sum(nodes_.front(), i), stream);
  }
  stream.Synchronize();
}

}  // namespace filigree
