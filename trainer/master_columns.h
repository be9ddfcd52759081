// Columns of weights that take over from others (trainer/pruning/second_order.h), on the device. Of
// dense weights and whole fp32 state, as pruning has them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "trainer/pruning/second_order.h"
#include "trainer/training_state.h"

namespace filigree {

class MasterColumns {
 public:
  // All must outlive it; what is exchanged is added to *bytes.
  MasterColumns(TrainingState& state, Communicator& communicator, Backend& backend, Stream& stream,
                int64_t* bytes)
      : state_(state),
        communicator_(communicator),
        backend_(backend),
        stream_(stream),
        bytes_(bytes) {}

  // Of the block of columns of dense weight `weight` that begins at `begin`, columns `gone` (by
  // their offset in it) leave, with `update`.
  void Add(const std::string& weight, int64_t begin, std::span<const int64_t> gone,
           const ColumnUpdate& update);
  // Carries out what was added: a weight moves once, whatever the number of its blocks. Collective,
  // with the same additions on all ranks; waits for the stream.
  void Apply();

 private:
  struct Block {
    int parameter = 0;
    int64_t columns = 0;  // where `gone`, and after it `rest`, begin in columns_
    int64_t factors = 0;  // and the update's in factors_
    int64_t gone = 0, rest = 0;
  };
  // The master as F32 whole, in the state's own memory where it is held so.
  TensorView Whole(int parameter);
  int64_t Largest() const;

  TrainingState& state_;
  Communicator& communicator_;
  Backend& backend_;
  Stream& stream_;
  int64_t* bytes_;
  std::vector<Block> blocks_;
  std::vector<int32_t> columns_;
  std::vector<double> factors_;
  DeviceBuffer gathered_;
};

}  // namespace filigree
