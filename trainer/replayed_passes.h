// Training passes that are submitted as recordings: where a pass's kernels are short, submitting
// them one by one takes longer than running them.
//
// A pass is known by its key. The first of a key is run as it is, the next is recorded, if nothing
// was allocated or freed on the device in between, and from then on the recording is submitted, as
// long as that holds: so new layouts, phases, compactions and workspaces that grew each drop what
// was recorded before them, and whatever changes at every step is never recorded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/base/device.h"
#include "trainer/model/model.h"
#include "trainer/spec.h"

namespace filigree {

// Whether a run's choice asks for it on this device, for micro-batches of `batch`.
bool ReplaysPasses(GraphChoice choice, const BatchSpec& batch, const Model& model,
                   const Device& device);

class ReplayedPasses {
 public:
  // All that passes of one trainer differ in, but for what the micro-batch's memory holds.
  struct Key {
    const Model* model = nullptr;
    PassState state;
    ConstTensorView tokens;  // where they are, and how many
    int64_t seq_len = 0;
    double loss_scale = 0;  // 0: it is on the device
    bool operator==(const Key& other) const;
  };

  // `device` must outlive the object.
  explicit ReplayedPasses(Device& device) : device_(device) {}

  // Submits what `pass` submits to `stream`, which must be told by `key`. False: from a recording,
  // and `pass` was not called. Where recording fails, `pass` is called a second time, since nothing
  // of the first has begun, and from then on every pass is run as it is.
  bool Run(const Key& key, const std::function<void()>& pass, Stream& stream);
  // Passes that came from a recording, so far.
  int64_t replays() const { return replays_; }

 private:
  struct Entry {
    Key key;
    uint64_t epoch = 0;  // of the device's memory, when the pass was last run
    std::unique_ptr<Recording> recording;
  };

  // Records an entry's pass and submits the recording; or `pass`, where there is none.
  void Record(Entry& entry, const std::function<void()>& pass, Stream& stream);

  Device& device_;
  std::vector<Entry> entries_;
  bool failed_ = false;  // recording
  int64_t replays_ = 0;
};

}  // namespace filigree
