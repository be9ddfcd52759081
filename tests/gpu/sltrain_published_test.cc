// SLTrain on the GPU against the published implementation: 50 steps from its own checkpoint.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "tests/gpu/gpu_testing.h"
#include "tests/parity/published_sltrain.h"

namespace filigree {
namespace {

class GpuSltrainPublishedTest : public GpuTest {};

// Products are bf16 here as there, so how far the published code's own bf16 losses are from its
// double precision is the noise that ours may have, with fp32 master weights and in pure bf16
// alike.
TEST_F(GpuSltrainPublishedTest, FiftyLossesAgreeToTheNoiseOfBf16) {
  const PublishedSltrain published(FILIGREE_SOURCE_DIR);
  const std::vector<double> exact = published.losses("f64");
  const auto noise = RelativeDifferences(published.losses("bf16"), exact);
  const double allowed = *std::max_element(noise.begin(), noise.end());
  ASSERT_LT(allowed, 0.02);
  for (const bool bf16_state : {false, true}) {
    RunSpec run = published.Run(/*micro_batch=*/8);
    run.phases[0].optimizer.state.bf16 = bf16_state;
    const std::vector<double> ours = published.Train(run, gpu(), stream());
    const auto found = RelativeDifferences(ours, exact);
    std::printf("bf16 state %d: relative differences at most %.1e, allowed %.1e\n", bf16_state,
                *std::max_element(found.begin(), found.end()), allowed);
    for (size_t step = 0; step < found.size(); ++step) {
      EXPECT_LE(found[step], allowed)
          << "step " << step << ", bf16 state " << bf16_state << ": " << ours[step];
    }
    EXPECT_LT(ours.back(), 0.5 * ours.front());
  }
}

}  // namespace
}  // namespace filigree
