#!/usr/bin/env python3
"""AdamW with blockwise 8-bit moments in NumPy, written from the equations of "8-bit Optimizers via Block-wise
Quantization" (arXiv 2110.02861), for tests/unit/compact_state_test.cc. In double precision but for the stored
scales and the comparison with the map, which are fp32. The scale carries the sign of the extreme value
(kernels/base/block_quantization.h says why); `--check` compares it with the paper's absolute maximum.

    python3 tests/parity/adam8bit_reference.py tests/parity/golden/adam8bit.safetensors
    python3 tests/parity/adam8bit_reference.py --check
"""
import sys

import numpy as np

from safetensors_file import save

BLOCK, STEPS, COUNT = 256, 50, 700  # a last block of 188
LR, BETA1, BETA2, EPSILON, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.1


def dynamic_map(signed):
    """Decades 1e-7..1e-6 up to 0.1..1, each cut into twice as many cells as the one below; 0 and 1."""
    entries = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        entries += list(middles) + (list(-middles) if signed else [])
    assert len(entries) == 256
    return np.sort(np.array(entries)).astype(np.float32)


MAPS = {signed: dynamic_map(signed) for signed in (True, False)}


def quantize(values, signed, absolute=False):
    entries = MAPS[signed].astype(np.float64)
    midpoints = ((entries[1:] + entries[:-1]) / 2).astype(np.float32)
    codes, scales = [], []
    for begin in range(0, len(values), BLOCK):
        block = values[begin:begin + BLOCK].astype(np.float32)
        most, least = block.max(), block.min()
        scale = most if most >= -least else least
        if absolute:
            scale = np.abs(scale)
        if np.abs(scale) < np.float32(2.0 ** -100):
            scale = np.float32(0)
        ratio = block / scale if scale != 0 else np.zeros_like(block)
        codes.append(np.searchsorted(midpoints, ratio, side="left"))
        scales.append(scale)
    return np.concatenate(codes).astype(np.int32), np.array(scales, dtype=np.float32)


def dequantize(codes, scales, signed):
    return MAPS[signed][codes].astype(np.float64) * np.repeat(scales, BLOCK)[:len(codes)]


def train(weights, grads, absolute=False):
    w = weights.astype(np.float64)
    m = quantize(np.zeros_like(w), True)
    v = quantize(np.zeros_like(w), False)
    for step, g in enumerate(grads.astype(np.float64), start=1):
        new_m = BETA1 * dequantize(*m, True) + (1 - BETA1) * g
        new_v = BETA2 * dequantize(*v, False) + (1 - BETA2) * g * g
        update = new_m / (1 - BETA1 ** step) / (np.sqrt(new_v / (1 - BETA2 ** step)) + EPSILON)
        w = w - LR * (update + DECAY * w)
        m = quantize(new_m, True, absolute)
        v = quantize(new_v, False, absolute)
    return w


def inputs():
    rng = np.random.default_rng(2110)
    weights = (0.02 * rng.standard_normal(COUNT)).astype(np.float32)
    # Gradients with a mean of their own an element and magnitudes over a decade.
    scale = 10.0 ** rng.uniform(-4, -3, COUNT)
    mean = rng.standard_normal(COUNT)
    grads = (scale * (mean + rng.standard_normal((STEPS, COUNT)))).astype(np.float32)
    return weights, grads


def check():
    """The two scales train alike, and both like whole moments."""
    weights, grads = inputs()
    signed, absolute = train(weights, grads), train(weights, grads, absolute=True)
    m, v, w = np.zeros(COUNT), np.zeros(COUNT), weights.astype(np.float64)
    for step, g in enumerate(grads.astype(np.float64), start=1):
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        w = w - LR * (m / (1 - BETA1 ** step) / (np.sqrt(v / (1 - BETA2 ** step)) + EPSILON) + DECAY * w)
    moved = np.linalg.norm(w - weights)
    for name, other in (("signed scale", signed), ("absolute maximum", absolute)):
        print(f"{name}: {np.linalg.norm(other - w) / moved:.4f} of the way from whole moments")


def main():
    if sys.argv[1] == "--check":
        return check()
    rng = np.random.default_rng(861)
    arrays = {}
    for signed in (True, False):
        name = "signed" if signed else "unsigned"
        values = rng.standard_normal(2000) * 10.0 ** rng.uniform(-8, 0, 2000)
        values = (values if signed else np.abs(values)).astype(np.float32)
        values[512:768] = 0
        arrays[name + ".values"] = values
        arrays[name + ".codes"], arrays[name + ".scales"] = quantize(values, signed)
    arrays["weights"], arrays["grads"] = inputs()
    arrays["weights_after"] = train(arrays["weights"], arrays["grads"]).astype(np.float32)
    save(sys.argv[1], arrays, {"source": "tests/parity/adam8bit_reference.py"})


if __name__ == "__main__":
    main()
