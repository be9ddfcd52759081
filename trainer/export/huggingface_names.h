// How our parameters are called, shaped and stored in Hugging Face checkpoints: one table a family,
// used by export and import alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/parameter.h"
#include "trainer/spec.h"

namespace filigree {

// A tensor of a Hugging Face checkpoint: one of our parameters, or several stacked along their
// outputs (GPT-2's q | k | v).
struct HfTensor {
  struct Part {
    std::string parameter;
    std::vector<int64_t> shape;  // ours: [n] or [out, in]

    int64_t out() const { return shape[0]; }
    int64_t in() const { return shape.size() == 2 ? shape[1] : 1; }
  };

  std::string name;
  std::vector<Part> parts;
  bool transposed = false;  // stored [in, out], as GPT-2's Conv1D does

  // The stacked parts' [out, in]; in = 1 for vectors.
  int64_t out() const;
  int64_t in() const { return parts[0].in(); }
  // The shape in the file.
  std::vector<int64_t> FileShape() const;
};

// Every tensor of the model, in our order of creation.
std::vector<HfTensor> HfTensorsOf(const ModelSpec& model);

// The parameters of a dense model in our order of creation, as its Hugging Face form implies them.
std::vector<Parameter> DenseParametersOf(const ModelSpec& model);

// Stacks the parts' logical arrays ([out, in] each) in the file's orientation, and the inverse for
// one part. T is float (values) or uint8_t (masks).
template <typename T>
std::vector<T> StackParts(const HfTensor& tensor, std::vector<std::vector<T>> parts);
std::vector<float> TakePart(const HfTensor& tensor, int part, std::vector<float> stacked);

}  // namespace filigree
