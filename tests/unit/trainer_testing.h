// A small run that the trainer's tests share.
#pragma once

#include "trainer/spec.h"

namespace filigree {

// A llama whose widths no block of 8 divides, with three key-value heads and an odd vocabulary.
inline RunSpec OddRun() {
  RunSpec run;
  run.model = {.layers = 2,
               .width = 42,
               .heads = 6,
               .kv_heads = 3,
               .head_size = 8,
               .feed_forward = 50,
               .vocab_size = 61,
               .padded_vocab_size = 64,
               .max_positions = 16};
  SparsitySpec blocks;
  blocks.include = {"layers.*"};
  blocks.parameterisation = "block_sparse";
  blocks.sparsity = 0.75;
  blocks.block_out = blocks.block_in = 8;
  PhaseSpec sparse;
  sparse.name = "sparse";
  sparse.steps = 4;
  sparse.batch = {.seq_len = 16, .tokens_per_step = 64, .micro_batch_sequences = 2};
  sparse.sparsity = {blocks};
  PhaseSpec dense = sparse;
  dense.name = "dense";
  dense.first_step = 4;
  dense.sparsity = {};
  run.phases = {sparse, dense};
  return run;
}

}  // namespace filigree
