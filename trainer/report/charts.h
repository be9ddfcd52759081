// Which charts the report shows of its runs.
#pragma once

#include <vector>

#include "trainer/report/line_chart.h"
#include "trainer/report/run_data.h"

namespace filigree::report {

// Runs take the palette's colours in order, and again from the first when it ends.
constexpr int kPaletteSize = 8;
inline int ColorOf(size_t run) { return static_cast<int>(run % kPaletteSize); }

// Loss, learning rate, sparsity, throughput and exchanged bytes, over the tokens seen. A chart
// without any value is left out.
std::vector<LineChart> MakeCharts(const std::vector<RunData>& runs);

}  // namespace filigree::report
