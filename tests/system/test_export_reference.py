"""The exported directory, read by its specification alone, computes what the run computes.

    FILIGREE_BINARY=build/filigree python3 tests/system/test_export_reference.py -v
"""
import os
import unittest

from filigree_testing import GPT2, SystemTest, config, phase, read_safetensors, sparse
from hf_reference import HfReference

# Relative to the largest logit. Rounding of fp32 arithmetic over two layers, and half a unit in the
# last place of bf16 (2^-9) a weight, which partly cancels over a sum.
FP32_ROUNDING = 2e-6
BF16_ROUNDING = 5e-3

# Three key-value heads, widths that blocks of 20 do not divide, a vocabulary that is padded, and
# RoPE and norms off their usual constants.
LLAMA = ("family: LLAMA layers: 2 width: 48 heads: 6 kv_heads: 3 feed_forward: 100 "
         "vocab_size: 301 rope_theta: 500 norm_epsilon: 1e-3 ")
MODELS = {
    "llama_tied": (LLAMA + "tied_head: true", sparse(block=20)),
    "llama_untied": (LLAMA + "tied_head: false", sparse("masked", 0.6)),
    "gpt2": (GPT2, sparse(block=16)),
}


class ExportReferenceTest(SystemTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.exports = {}

    def export_of(self, name):
        """Trains and exports once: the run and its f32 and bf16 directories."""
        if name not in self.exports:
            model, sparsity = MODELS[name]
            run = self.train(name, config(self.data, phase(20, sparsity), model=model))
            directories = {dtype: self.path(f"{name}-{dtype}") for dtype in ("f32", "bf16")}
            for dtype, directory in directories.items():
                self.filigree("export", run, "--out", directory, "--dtype", dtype)
            self.exports[name] = (run, directories)
        return self.exports[name]

    def logits_of(self, what, file):
        """Tokens and logits of the first window as `eval` computes them."""
        self.filigree("eval", what, "--data", os.path.join(self.data, "val_*.bin"),
                      "--seq-len", 16, "--tokens", 64, "--logits", self.path(file))
        tensors, _ = read_safetensors(self.path(file))
        vocabulary = tensors["logits"].shape[1]
        flat = tensors["logits"].values()
        return tensors["tokens"].values(), [flat[i:i + vocabulary]
                                            for i in range(0, len(flat), vocabulary)]

    def largest_difference(self, found, expected):
        """Largest absolute difference over the largest logit."""
        self.assertEqual([len(row) for row in found], [len(row) for row in expected])
        pairs = [(a, b) for x, y in zip(found, expected) for a, b in zip(x, y)]
        return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)

    def test_f32_is_the_run(self):
        for name in MODELS:
            with self.subTest(name=name):
                run, directories = self.export_of(name)
                tokens, logits = self.logits_of(run, f"{name}-run.safetensors")
                expected = HfReference(directories["f32"]).logits(tokens)
                self.assertLess(self.largest_difference(logits, expected), FP32_ROUNDING)
                _, back = self.logits_of(directories["f32"], f"{name}-f32.safetensors")
                self.assertLess(self.largest_difference(back, expected), FP32_ROUNDING)

    def test_bf16_is_the_run_rounded(self):
        for name in MODELS:
            with self.subTest(name=name):
                run, directories = self.export_of(name)
                tokens, logits = self.logits_of(directories["bf16"], f"{name}-bf16.safetensors")
                expected = HfReference(directories["bf16"]).logits(tokens)
                # `eval` computes in fp32 with the rounded weights, so it agrees to fp32 rounding.
                self.assertLess(self.largest_difference(logits, expected), FP32_ROUNDING)
                _, exact = self.logits_of(run, f"{name}-exact.safetensors")
                difference = self.largest_difference(logits, exact)
                self.assertLess(difference, BF16_ROUNDING)
                self.assertGreater(difference, 0, "nothing was rounded")


if __name__ == "__main__":
    unittest.main()
