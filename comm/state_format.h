// The choice of how a FlatBuffer holds gradients and the optimizer's state.
#pragma once

namespace filigree {

// Explained in flat_buffer.h.
struct StateFormat {
  bool bf16 = false;               // no master; whole moments are BF16
  bool eight_bit_moments = false;  // of all but small segments
  bool operator==(const StateFormat&) const = default;
};

// Gradients that need not exist all at once: units of buckets (flat_layout.h) become final one
// after another, from the last to the first, and take one of `count` places in turn. 0: every
// bucket has a place of its own.
struct GradientSlots {
  int count = 0;
  bool first_apart = false;  // unit 0 has a place of its own (a tied embedding's is written twice)
  bool operator==(const GradientSlots&) const = default;
};

}  // namespace filigree
