"""What leaves as a Hugging Face directory computes what the run computes."""
import importlib.util
import json
import os
import subprocess
import sys
import unittest

from filigree_testing import (GPT2, LLAMA, SOURCE_DIR, SystemTest, config, phase, read_bytes,
                              read_safetensors, sparse)

FAMILIES = (("llama", LLAMA, sparse()), ("tied", LLAMA + " tied_head: true", sparse("masked", 0.5)),
            ("gpt2", GPT2, sparse(block=12)))


class ExportTest(SystemTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.validation = os.path.join(cls.data, "val*.bin")

    def run_of(self, name, model, sparsity):
        run = self.path(name)
        if not os.path.exists(run):
            self.train(name, config(self.data, phase(6, sparsity), model=model))
        return run

    def logits(self, what, name):
        """Logits of the first window and the mean loss, as `eval` computes them from `what`."""
        path = self.path(name)
        result = self.filigree("eval", what, "--data", self.validation, "--seq-len", 32,
                               "--logits", path, "--json")
        tensors, _ = read_safetensors(path)
        return tensors["logits"].values(), json.loads(result.stdout)["loss"]

    def test_logits_survive(self):
        for name, model, sparsity in FAMILIES:
            with self.subTest(name=name):
                run = self.run_of(name, model, sparsity)
                expected, loss = self.logits(run, name + "-run")
                scale = max(map(abs, expected))
                self.assertGreater(scale, 0.1)
                for dtype, tolerance in (("f32", 1e-6), ("bf16", 2e-2)):
                    hf = self.path(f"{name}-{dtype}")
                    self.filigree("export", run, "--out", hf, "--dtype", dtype)
                    found, hf_loss = self.logits(hf, f"{name}-{dtype}-logits")
                    gap = max(abs(a - b) for a, b in zip(found, expected))
                    self.assertLessEqual(gap, tolerance * scale, dtype)
                    self.assertAlmostEqual(hf_loss, loss, delta=tolerance)
                    imported = self.path(f"{name}-{dtype}-imported")
                    self.filigree("import", hf, "--out", imported)
                    again, _ = self.logits(imported, f"{name}-{dtype}-again")
                    self.assertEqual(again, found)

    def test_zeros_are_where_the_layouts_say(self):
        for name, model, sparsity in FAMILIES:
            with self.subTest(name=name):
                hf = self.path(name + "-zeros")
                self.filigree("export", self.run_of(name, model, sparsity), "--out", hf,
                              "--dtype", "f32")
                weights, _ = read_safetensors(hf, "model.safetensors")
                layouts, _ = read_safetensors(hf, "filigree_layouts.safetensors")
                cells = zeros = 0
                for tensor, bits in layouts.items():
                    weight = weights[tensor.removesuffix(".mask")].values()
                    for i, value in enumerate(weight):
                        if not bits.data[i // 8] >> (i % 8) & 1:
                            self.assertEqual(value, 0, f"{tensor}[{i}]")
                            zeros += 1
                    cells += len(weight)
                self.assertAlmostEqual(zeros / cells, 0.5 if name == "tied" else 0.75, delta=0.05)

    def test_fine_tuning_starts_from_an_import(self):
        """An imported model trains on from its own loss, dense, with fresh moments."""
        run = self.run_of(*FAMILIES[0])
        hf, imported = self.path("start-hf"), self.path("start")
        self.filigree("export", run, "--out", hf, "--dtype", "f32")
        self.filigree("import", hf, "--out", imported)
        _, loss = self.logits(run, "start-logits")
        tuned = self.train("tuned", config(self.data, phase(4)), "--resume", imported)
        lines = [json.loads(line) for line in read_bytes(tuned, "metrics.jsonl").splitlines()]
        evaluations = [line["val_loss"] for line in lines if "val_loss" in line]
        self.assertAlmostEqual(evaluations[0], loss, delta=0.2)  # other windows of the same text
        self.assertLess(evaluations[-1], evaluations[0])
        self.assertEqual([line["sparsity"] for line in lines if "loss" in line], [0] * 4)

    @unittest.skipUnless(all(importlib.util.find_spec(package) for package in
                             ("torch", "transformers", "safetensors")),
                         "needs torch, transformers and safetensors")
    def test_transformers_agree(self):
        for name, model, sparsity in FAMILIES:
            for dtype in ("f32", "bf16"):
                with self.subTest(name=name, dtype=dtype):
                    hf = self.path(f"{name}-{dtype}-loaded")
                    self.filigree("export", self.run_of(name, model, sparsity), "--out", hf,
                                  "--dtype", dtype)
                    self.logits(hf, "reference")
                    result = subprocess.run(
                        [sys.executable, os.path.join(SOURCE_DIR, "tests/parity/hf_load_test.py"),
                         hf, "--logits", self.path("reference"), "--dtype", "float32"],
                        capture_output=True, text=True, check=False)
                    self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
