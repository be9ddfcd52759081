// The data of a phase: its training and validation loaders, and the tokenizer where one is at hand.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "data/data_loader.h"
#include "data/tokenizer.h"
#include "kernels/base/status.h"
#include "trainer/spec.h"

namespace filigree {

struct PhaseData {
  std::unique_ptr<DataLoader> train;
  std::unique_ptr<DataLoader> validation;  // nullptr: no evaluation
};

// Opens and checks the shards of a phase: formats, token ids below the vocabulary, enough tokens.
StatusOr<PhaseData> OpenPhaseData(const PhaseSpec& phase, const ModelSpec& model, uint64_t seed);

// A loader over a validation glob in file order, with the phase's layout and masks.
StatusOr<std::unique_ptr<DataLoader>> OpenValidation(const std::string& glob, const DataSpec& data,
                                                     int64_t seq_len, int64_t vocab_size);

}  // namespace filigree
