// Sparsity of every weight: a row for each kind of weight, a column for each layer.
#pragma once

#include <string>

#include "trainer/report/run_data.h"

namespace filigree::report {

// <figure> with the SVG. Layers come from names as "layers.3.mlp.up.weight"; other weights share a
// column of their own. `color` is of the page's palette, `id` unique in the page.
std::string RenderHeatmap(const RunData& run, int color, const std::string& id);

}  // namespace filigree::report
