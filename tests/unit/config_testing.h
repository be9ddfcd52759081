// What the tests of configurations share: a small one, and what parsing makes of texts.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "trainer/config/run_config.h"

namespace filigree {

// Six lines; what a test appends begins at line 7.
inline constexpr char kSmall[] = R"(name: "small"
model { layers: 2 width: 48 heads: 3 vocab_size: 257 }
data { train { glob: "a_*.bin" } validation: "v.bin" }
batch { seq_len: 32 tokens_per_step: 256 micro_batch_sequences: 4 }
sparsity { parameterisation: "block_sparse" sparsity: 0.75 }
phase { tokens: 5120 }
)";

inline KnownNames Known() {
  KnownNames known;
  known.parameterisations = {"dense", "masked", "block_sparse"};
  return known;
}

inline StatusOr<LoadedConfig> Parse(const std::string& text,
                                    const std::vector<std::string>& overrides = {}) {
  return ParseRunConfig(text, "run.textproto", overrides, Known());
}

inline RunSpec Spec(const std::string& text, const std::vector<std::string>& overrides = {}) {
  auto loaded = Parse(text, overrides);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.ok() ? loaded->spec : RunSpec{};
}

inline std::string Error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  auto loaded = Parse(text, overrides);
  EXPECT_FALSE(loaded.ok());
  if (loaded.ok()) return "";
  EXPECT_EQ(loaded.status().exit_code(), 2);
  return loaded.status().message();
}

// The small configuration with `old_text` replaced.
inline std::string With(const std::string& old_text, const std::string& new_text) {
  std::string text = kSmall;
  const size_t at = text.find(old_text);
  EXPECT_NE(at, std::string::npos) << old_text;
  return text.replace(at, old_text.size(), new_text);
}

}  // namespace filigree
