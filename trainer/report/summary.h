// The table at the head of the report: one row a phase.
#pragma once

#include <string>
#include <vector>

#include "trainer/report/run_data.h"

namespace filigree::report {

// <table>. Rates are medians over the phase's steps; losses its last ones.
std::string RenderSummary(const std::vector<RunData>& runs);

}  // namespace filigree::report
