#!/usr/bin/env python3
"""Writes tests/parity/golden/{llama,gpt2}.safetensors: what tiny models compute, by NumPy alone.

The models are written here from their definitions (Touvron et al. 2023; Radford et al. 2019) in
double precision and share no code with Filigree. Gradients come from complex steps: the loss at
w + ih has the imaginary part h dL/dw, without cancellation and without a backward pass that could
share a mistake with the one under test. tests/unit/model_golden_test.cc compares.

    python3 tests/parity/make_golden.py      # needs NumPy; a minute
"""
import json
import os
import struct

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
MASKED = -1
STEP = 1e-30

LLAMA = {"family": 0, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "head_size": 6,
         "feed_forward": 22, "vocab_size": 29, "max_positions": 16, "tied_head": 0,
         "rope_theta": 10000.0, "norm_epsilon": 1e-6}
GPT2 = {"family": 1, "layers": 2, "width": 15, "heads": 3, "kv_heads": 3, "head_size": 5,
        "feed_forward": 26, "vocab_size": 29, "max_positions": 11, "tied_head": 1,
        "norm_epsilon": 1e-5}
SEQUENCES, SEQ_LEN = 2, 7


def parameter_shapes(c):
    """Name -> shape, [out, in] for matrices."""
    gpt2 = c["family"] == 1
    d, q, kv, f = (c["width"], c["heads"] * c["head_size"], c["kv_heads"] * c["head_size"],
                   c["feed_forward"])
    shapes = {"embedding.weight": (c["vocab_size"], d)}
    if gpt2:
        shapes["position_embedding.weight"] = (c["max_positions"], d)

    def norm(name):
        shapes[name + ".weight"] = (d,)
        if gpt2:
            shapes[name + ".bias"] = (d,)

    def linear(name, rows, cols):
        shapes[name + ".weight"] = (rows, cols)
        if gpt2:
            shapes[name + ".bias"] = (rows,)

    for i in range(c["layers"]):
        layer = f"layers.{i}."
        norm(layer + "attention_norm")
        linear(layer + "attention.q", q, d)
        linear(layer + "attention.k", kv, d)
        linear(layer + "attention.v", kv, d)
        linear(layer + "attention.o", d, q)
        norm(layer + "mlp_norm")
        if not gpt2:
            linear(layer + "mlp.gate", f, d)
        linear(layer + "mlp.up", f, d)
        linear(layer + "mlp.down", d, f)
    norm("final_norm")
    if not c["tied_head"]:
        shapes["head.weight"] = (c["vocab_size"], d)
    return shapes


class Decoder:
    """Both families over parameters `w`, which may be complex."""

    def __init__(self, c, w):
        self.c, self.w = c, w

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def norm(self, x, name):
        gain, epsilon = self.w[name + ".weight"], self.c["norm_epsilon"]
        if self.c["family"] == 0:
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
        return centred / deviation * gain + self.w[name + ".bias"]

    def rotate(self, x):
        """Rotate-half RoPE of [B, S, heads, E]."""
        half = x.shape[-1] // 2
        angles = (np.arange(x.shape[1])[:, None] *
                  self.c["rope_theta"] ** (-np.arange(half) / half))[:, None, :]
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * np.cos(angles) - second * np.sin(angles),
                               second * np.cos(angles) + first * np.sin(angles)], -1)

    def attention(self, x, layer):
        c, (b, s, _) = self.c, x.shape
        q = self.linear(x, layer + "attention.q").reshape(b, s, c["heads"], -1)
        k = self.linear(x, layer + "attention.k").reshape(b, s, c["kv_heads"], -1)
        v = self.linear(x, layer + "attention.v").reshape(b, s, c["kv_heads"], -1)
        if c["family"] == 0:
            q, k = self.rotate(q), self.rotate(k)
        group = c["heads"] // c["kv_heads"]
        k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
        scores = np.einsum("bqhe,bkhe->bhqk", q, k) / np.sqrt(c["head_size"])
        weights = np.exp(scores) * np.tril(np.ones((s, s)))
        weights = weights / weights.sum(-1, keepdims=True)
        out = np.einsum("bhqk,bkhe->bqhe", weights, v).reshape(b, s, -1)
        return self.linear(out, layer + "attention.o")

    def mlp(self, x, layer):
        up = self.linear(x, layer + "mlp.up")
        if self.c["family"] == 0:
            gate = self.linear(x, layer + "mlp.gate")
            hidden = gate / (1 + np.exp(-gate)) * up
        else:
            hidden = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up ** 3)))
        return self.linear(hidden, layer + "mlp.down")

    def streams(self, tokens):
        """The residual stream after each layer."""
        x = self.w["embedding.weight"][tokens]
        if self.c["family"] == 1:
            x = x + self.w["position_embedding.weight"][:tokens.shape[1]]
        found = []
        for i in range(self.c["layers"]):
            layer = f"layers.{i}."
            x = x + self.attention(self.norm(x, layer + "attention_norm"), layer)
            x = x + self.mlp(self.norm(x, layer + "mlp_norm"), layer)
            found.append(x)
        return found

    def logits(self, tokens):
        head = self.w["embedding.weight" if self.c["tied_head"] else "head.weight"]
        return self.norm(self.streams(tokens)[-1], "final_norm") @ head.T

    def losses(self, tokens, targets):
        """Per token; zero where the target is masked."""
        logits = self.logits(tokens)
        log_sum = np.log(np.exp(logits).sum(-1))
        chosen = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
        return (log_sum - chosen) * (targets != MASKED)


def gradients(c, w, tokens, targets):
    """Of the mean loss over valid targets, by complex steps."""
    valid = (targets != MASKED).sum()
    found = {}
    w = {name: value.astype(np.complex128) for name, value in w.items()}
    for name, value in w.items():
        grad = np.zeros(value.shape)
        for cell in np.ndindex(value.shape):
            value[cell] += 1j * STEP
            grad[cell] = Decoder(c, w).losses(tokens, targets).sum().imag / STEP / valid
            value[cell] = value[cell].real
        found[name] = grad
    return found


def write_safetensors(path, tensors, metadata):
    header, body = {"__metadata__": metadata}, b""
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        data = array.tobytes()
        dtype = {"float32": "F32", "int32": "I32"}[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body)


def write_golden(name, c, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, c["vocab_size"], (SEQUENCES, SEQ_LEN), dtype=np.int32)
    targets = rng.integers(0, c["vocab_size"], (SEQUENCES, SEQ_LEN), dtype=np.int32)
    targets[0, 2] = targets[1, 6] = MASKED
    w = {}
    for parameter, shape in parameter_shapes(c).items():
        mean = 1.0 if parameter.endswith("norm.weight") else 0.0
        # Rounded to fp32, which the file holds, before anything is computed from them.
        values = (mean + 0.3 * rng.standard_normal(shape)).astype(np.float32)
        w[parameter] = values.astype(np.float64)
    model = Decoder(c, w)
    tensors = {"tokens": tokens, "targets": targets}
    single = {"logits": model.logits(tokens), "losses": model.losses(tokens, targets)}
    for i, stream in enumerate(model.streams(tokens)):
        single[f"normed_after.{i + 1}"] = model.norm(stream, "final_norm")
    single.update({"value." + parameter: value for parameter, value in w.items()})
    single.update({"grad." + parameter: grad for parameter, grad in
                   gradients(c, w, tokens, targets).items()})
    tensors.update({key: value.astype(np.float32) for key, value in single.items()})
    path = os.path.join(HERE, "golden", name + ".safetensors")
    write_safetensors(path, tensors, {key: str(value) for key, value in c.items()})
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    write_golden("llama", LLAMA, seed=1)
    write_golden("gpt2", GPT2, seed=2)
