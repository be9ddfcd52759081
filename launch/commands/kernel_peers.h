// Other sparse products beside ours, for `filigree bench kernels --peers`.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "launch/commands/kernel_timing.h"

namespace filigree {

struct KernelPeer {
  std::string name;  // "cusparse_bsr", "cusparse_csr", "n_m_2to4"
  // By kProductNames, in milliseconds, medians; nothing where there is no such product. The total
  // is the sum.
  std::array<std::optional<double>, 4> ms;
};

// The blocked weight of `c` in either format of cuSPARSE, and a 2:4 weight of the same shape,
// whatever the sparsity of `c`, on a CUDA device; elsewhere there are no peers. CSR runs without
// tensor cores, hundreds of times longer than a dense product: a few rounds are timed.
std::vector<KernelPeer> TimePeers(const KernelCase& c, Backend& backend, Stream& stream);

}  // namespace filigree
