// Second moments of a linear's inputs in blocks of columns.
#pragma once

#include <span>

#include "kernels/backend.h"
#include "trainer/linear/linear.h"

namespace filigree {

// Adds x^T x of each of `grams`' columns of x [T, in]. Those of one size that follow each other at
// one distance, in x and in memory, are one batch: alone each would fill one of a GPU's processors.
void AddInputGrams(ConstTensorView x, std::span<const InputGram> grams, Backend& backend,
                   Stream& stream);

}  // namespace filigree
