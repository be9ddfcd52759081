// What the moving topology of a phase exchanges, for `plan`: to the byte what a run counts.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/device.h"
#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

struct TopologyTraffic {
  struct Point {
    int64_t step = 0;  // steps of the run done before
    int64_t bytes = 0;
  };
  // Of one optimizer step, from that step on, wherever it changes. Under one threshold over all
  // weights each one's share is taken to be the same, which may be a bucket's padding off.
  std::vector<Point> steps;
  // Of each update: statistics summed over the ranks (and the passes that collect them, at a
  // phase's start), the values that are scored, under ZeRO-1 the whole state as it moves to its new
  // layouts, and the layouts' fingerprints.
  std::vector<Point> updates;
  // Device bytes that an update's scores and selection take at most: of the dense gradients that it
  // collects (twice where H g is asked for), what one entry's event holds (SelectionBytes), and the
  // indices of all new layouts.
  int64_t selection_bytes = 0;
  // Whether the state is ever built again beside itself.
  bool rebuilds = false;
};

// `parameters`: of the phase's model, at any moment.
TopologyTraffic PlanTopologyTraffic(const RunSpec& run, int phase, int ranks,
                                    const std::vector<Parameter>& parameters, const Device& device);

}  // namespace filigree
