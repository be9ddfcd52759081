// Sums over the samples of a step in one order, whatever the number of ranks (the CPU's
// deterministic mode).
//
// Sample i is leaf i of a binary tree over all the samples of the step: a node of level l covers
// [k 2^l, (k + 1) 2^l), cut at the last sample, and is the sum of its two halves. No other addition
// is made, so the bits of the sum depend on the samples alone. A rank adds up the nodes that lie
// inside its samples, the other ranks are sent those (one a rank where ranks and samples are powers
// of two, at most 2 log2(samples) a rank), and every rank completes the tree.
//
// Cost: each node sent is the size of all gradients, where an exchange sends them once; and up to
// 2 log2(samples) + 3 copies of them are held.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "kernels/base/device.h"
#include "trainer/spec.h"

namespace filigree {

// Whether a run on this device sums so: parallel.deterministic on the CPU.
bool SumsInTree(const RunSpec& run, const Device& device);

class SampleTree {
 public:
  // `arrays`: F32 or F64 in host memory, zero, to which the pass over each sample adds. They, the
  // device and the communicator must outlive the tree.
  SampleTree(Device& device, std::vector<TensorView> arrays, int64_t samples,
             Communicator& communicator);

  // The arrays hold the next of this rank's samples (PartitionSamples): moves it into the tree.
  void TakeSample(Stream& stream);
  // All of them were taken: the arrays hold the sum over the step's samples. Collective.
  void Complete(Stream& stream);

  // How often the arrays are sent in Complete, over all ranks.
  static int64_t NodesSent(int64_t samples, int ranks);
  // How many copies of the arrays are held at once, at most.
  static int64_t NodesHeld(int64_t samples);

 private:
  struct Node {
    int64_t first = 0;
    int level = 0;
    std::vector<DeviceBuffer> sums;  // of each array
  };
  static std::vector<Node> NodesOf(int64_t samples, int rank, int ranks);

  void Allocate(Node* node);
  TensorView Sum(const Node& node, size_t array) const;
  // Adds the node on top to the one below it.
  void Join();
  // Puts a node on top, and joins what has become whole.
  void Push(Node node);

  Device& device_;
  std::vector<TensorView> arrays_;
  const int64_t samples_;
  Communicator& communicator_;
  int64_t next_;             // sample to take
  std::vector<Node> nodes_;  // from left to right
};

}  // namespace filigree
