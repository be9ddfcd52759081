// `filigree report`: one self-contained HTML page about one run or several.
//
// Nothing is loaded from elsewhere, so the page works from a file and from a mail. It holds a
// summary of every phase, charts (loss, learning rate, sparsity, throughput, exchanged bytes), the
// sparsity of each weight, and the effective configurations. Values show under the pointer; without
// scripts everything else is still there.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

// Reads RUN/metrics.jsonl and RUN/config.textproto (and RUN/layers.json if it is there) of each run
// directory and writes the page to `out_html`. A run that still trains can be read too.
// InvalidInput: no such run, a damaged file, an unwritable page.
Status WriteReport(const std::vector<std::string>& runs, const std::string& out_html);

}  // namespace filigree
