// GELU's derivative in one byte, kept for the backward pass in place of the argument's two.
//
// Few-bit backward (Novikov et al., arXiv 2202.00441): all that backward needs of an activation
// function's input x is f'(x). That of GELU's tanh form lies in [-0.1290, 1.1290], so a uniform
// quantiser in steps of 1/200 is never more than 1/400 off; 0, 1/2 and 1, where most of it is, are
// codes of their own. A uniform one bounds the error of dx by 1/400 of the element's dy, whatever x is
// distributed like; relative to dx that is as much as rounding to bf16 where gelu' is near 1, and more
// where most inputs are negative.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace filigree {

inline constexpr int kGeluCodesPerUnit = 200;
inline constexpr int kGeluCodeOfZero = 27;  // codes reach from -0.135 to 1.14

inline uint8_t EncodeGeluDerivative(double derivative) {
  const double code = std::floor(derivative * kGeluCodesPerUnit + kGeluCodeOfZero + 0.5);
  return static_cast<uint8_t>(std::clamp(code, 0.0, 255.0));
}

inline double DecodeGeluDerivative(uint8_t code) {
  return static_cast<double>(code - kGeluCodeOfZero) / kGeluCodesPerUnit;
}

}  // namespace filigree
