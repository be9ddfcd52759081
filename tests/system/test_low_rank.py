"""Low-rank factors end to end: ranks, resume, phases, export and the published loss."""
import json
import os
import unittest

from filigree_testing import (BAD_INPUT, SystemTest, config, losses, metrics, newest,
                              phase, read_bytes, read_safetensors)

RANK, ALPHA = 8, 16
FORMS = {
    "low_rank": 'sparsity { parameterisation: "low_rank" rank: 8 }',
    "cola": 'sparsity { parameterisation: "cola" rank: 8 }',
    "sltrain": f'sparsity {{ parameterisation: "sparse_plus_low_rank" sparsity: 0.9 rank: {RANK} '
               f"alpha: {ALPHA} }}",
    "blocks": 'sparsity { parameterisation: "sparse_plus_low_rank" sparse_part: BLOCKS '
              "sparsity: 0.75 block_out: 16 block_in: 16 rank: 8 compute: FACTORED }",
}
ARRAYS = ("model.safetensors", "optimizer.safetensors")


class LowRankTest(SystemTest):

    def evaluate(self, what, *arguments):
        result = self.filigree("eval", what, "--data", os.path.join(self.data, "val_*.bin"),
                               "--seq-len", 32, "--json", *arguments)
        return json.loads(result.stdout.splitlines()[-1])

    def test_ranks_and_resume(self):
        for name, sparsity in FORMS.items():
            with self.subTest(name):
                text = config(self.data, phase(8, sparsity),
                              checkpoint="every_steps: 3 keep_last: 0")
                one = self.train(f"{name}-1", text)
                two = self.train(f"{name}-2", text, ranks=2)
                self.assertLess(losses(one)[-1], losses(one)[0])
                self.assert_close(losses(two), losses(one), 2e-5, "losses")
                cut = self.cut_copy(f"{name}-cut", two, 3)
                self.train(f"{name}-cut", text, ranks=2)
                for file in ARRAYS:
                    self.assertEqual(read_bytes(newest(cut), file), read_bytes(newest(two), file))

    def test_export_is_the_merged_run(self):
        for name in ("low_rank", "sltrain", "blocks"):
            with self.subTest(name):
                run = self.train(f"{name}-export", config(self.data, phase(6, FORMS[name])))
                hf = self.path(f"{name}-hf")
                self.filigree("export", run, "--out", hf, "--dtype", "f32")
                of_run, of_export = self.evaluate(run), self.evaluate(hf)
                self.assertAlmostEqual(of_run["loss"], of_export["loss"], places=6)
                # The run itself evaluated in its own form.
                validation = metrics(run)[1][-1]
                limited = self.evaluate(hf, "--tokens", 2048)
                self.assertAlmostEqual(limited["loss"], validation["val_loss"], places=4)
        self.check_merged_weight(self.path("sltrain-export"), self.path("sltrain-hf"))

    def check_merged_weight(self, run, hf):
        stored, _ = read_safetensors(newest(run), "model.safetensors")
        layouts, _ = read_safetensors(newest(run), "layouts.safetensors")
        exported, _ = read_safetensors(hf, "model.safetensors")
        name = "layers.1.mlp.down"
        a, b = stored[name + ".low_rank_a"], stored[name + ".low_rank_b"]
        self.assertEqual((a.shape, b.shape), ([RANK, 100], [48, RANK]))
        values_a, values_b = a.values(), b.values()
        expected = [ALPHA / RANK * sum(values_b[o * RANK + k] * values_a[k * 100 + i]
                                       for k in range(RANK)) for o in range(48) for i in range(100)]
        offsets = layouts[name + ".weight.row_offsets"].values()
        columns = layouts[name + ".weight.columns"].values()
        values = stored[name + ".weight"].values()
        self.assertEqual(len(values), 480)
        for row in range(48):
            for slot in range(offsets[row], offsets[row + 1]):
                expected[row * 100 + columns[slot]] += values[slot]
        self.assert_close(exported["model.layers.1.mlp.down_proj.weight"].values(), expected, 1e-6,
                          "merged")
        masks, metadata = read_safetensors(hf, "filigree_layouts.safetensors")
        layout = json.loads(metadata["model.layers.1.mlp.down_proj.weight.layout"])
        self.assertEqual(layout["parts"][0]["low_rank"], {"rank": RANK, "scale": ALPHA / RANK})
        bits = masks["model.layers.1.mlp.down_proj.weight.mask"].values()
        self.assertEqual(sum(bin(byte).count("1") for byte in bits), 480)

    def test_checkpoints_of_the_reference(self):
        run = self.train("reference", config(self.data, phase(6, FORMS["sltrain"])))
        out = self.path("reference-sltrain")
        self.filigree("export", run, "--out", out, "--format", "sltrain", "--dtype", "f32")
        tensors, _ = read_safetensors(out, "model.safetensors")
        prefix = "model.layers.1.mlp.down_proj"
        self.assertEqual({name: (tensors[f"{prefix}.{name}"].dtype, tensors[f"{prefix}.{name}"].shape)
                          for name in ("lora_A", "lora_B", "sparse_value", "sparse_index")},
                         {"lora_A": ("F32", [RANK, 100]), "lora_B": ("F32", [48, RANK]),
                          "sparse_value": ("F32", [480]), "sparse_index": ("I64", [480])})
        self.assertNotIn(prefix + ".weight", tensors)
        self.assertIn("model.embed_tokens.weight", tensors)
        indices = tensors[prefix + ".sparse_index"].values()
        self.assertEqual(indices, sorted(set(indices)))
        with open(os.path.join(out, "splora_config.json"), encoding="utf-8") as file:
            splora = json.load(file)
        self.assertEqual((splora["r"], splora["lora_alpha"]), (RANK, ALPHA))
        self.assertEqual(self.evaluate(out)["loss"], self.evaluate(run)["loss"])
        # Back: the same arrays, and training goes on from them.
        imported = self.path("reference-imported")
        self.filigree("import", out, "--out", imported)
        for name, tensor in read_safetensors(newest(run), "model.safetensors")[0].items():
            again = read_safetensors(imported, "model.safetensors")[0][name]
            self.assertEqual((again.shape, again.data), (tensor.shape, tensor.data), name)
        more = self.path("reference-more")
        self.filigree("train", self.path("reference.textproto"), "--out", more, "--resume", imported)
        self.assertLess(losses(more)[0], losses(run)[0] - 0.05)
        self.assertEqual(read_bytes(newest(more), "layouts.safetensors"),
                         read_bytes(newest(run), "layouts.safetensors"))
        blocks = self.train("reference-blocks", config(self.data, phase(2, FORMS["blocks"])))
        result = self.filigree("export", blocks, "--out", self.path("no"), "--format", "sltrain",
                               code=BAD_INPUT)
        self.assertIn("export it without --format sltrain", result.stderr)

    def test_a_nonlinear_run_evaluates_but_has_no_export(self):
        run = self.train("cola-eval", config(self.data, phase(6, FORMS["cola"])))
        validation = metrics(run)[1][-1]
        self.assertAlmostEqual(self.evaluate(run, "--tokens", 2048)["loss"],
                               validation["val_loss"], places=5)
        result = self.filigree("export", run, "--out", self.path("cola-hf"), code=BAD_INPUT)
        self.assertIn("nonlinearity", result.stderr)
        self.assertFalse(os.path.exists(self.path("cola-hf")))

    def test_a_dense_phase_goes_on_from_the_merged_weight(self):
        run = self.train("merged", config(self.data, phase(6, FORMS["sltrain"]),
                                          phase(4, "schedule { lr: 1e-5 }"), sequences=12),
                         ranks=2)
        evaluations = metrics(run)[1]
        end_of_first = [e["val_loss"] for e in evaluations if e["step"] == 6]
        # The dense phase evaluates its first state: the same function.
        self.assertGreaterEqual(len(end_of_first), 2)
        self.assertAlmostEqual(end_of_first[0], end_of_first[-1], places=5)
        stored, _ = read_safetensors(newest(run), "model.safetensors")
        self.assertNotIn("layers.0.mlp.up.low_rank_a", stored)

    def test_what_cannot_follow_is_refused(self):
        for phases, message in (
                ((phase(2), phase(2, FORMS["sltrain"])), "cannot go on from dense"),
                ((phase(2, FORMS["cola"]), phase(2)), "cannot go on from cola as dense"),
        ):
            result = self.filigree("train", self.write("bad.textproto", config(self.data, *phases)),
                                   "--out", self.path("bad"), code=BAD_INPUT)
            self.assertIn(message, result.stderr)
            self.assertFalse(os.path.exists(self.path("bad")))
        run = self.train("rank-8", config(self.data, phase(2, FORMS["sltrain"])))
        other = config(self.data, phase(4, FORMS["sltrain"].replace("rank: 8", "rank: 4")))
        path = self.write("other.textproto", other)
        result = self.filigree("train", path, "--out", run, code=BAD_INPUT)
        self.assertIn("rank 8 and scale 2", result.stderr)
        self.assertIn("rank 4 and scale 4", result.stderr)
        # The factors alone would fit.
        path = self.write("alone.textproto", config(
            self.data, phase(4, 'sparsity { parameterisation: "low_rank" rank: 8 alpha: 16 }')))
        result = self.filigree("train", path, "--out", run, code=BAD_INPUT)
        self.assertIn("with a sparse part and factors of rank 8", result.stderr)

    def test_the_published_loss(self):
        run = self.train("published", config(self.data, phase(4, FORMS["sltrain"])))
        correct = self.evaluate(run, "--tokens", 2048, "--sequences", 16)
        published = self.evaluate(run, "--tokens", 2048, "--sequences", 16, "--formula", "sltrain")
        # Four batches of as many tokens each: the mean times 4/5.
        self.assertEqual(correct["tokens"], 2048)
        self.assertAlmostEqual(published["loss"], correct["loss"] * 4 / 5, places=6)
        single = self.evaluate(run, "--tokens", 2048, "--sequences", 64, "--formula", "sltrain")
        self.assertAlmostEqual(single["loss"], correct["loss"] / 2, places=6)
        in_run = config(self.data, phase(4, FORMS["sltrain"])).replace(
            "tokens: 2048 }", "tokens: 2048 formula: SLTRAIN }")
        run = self.train("published-in-run", in_run)
        # Micro-batches of two rows: 32 of them.
        self.assertAlmostEqual(metrics(run)[1][-1]["val_loss"], correct["loss"] * 32 / 33, places=5)


if __name__ == "__main__":
    unittest.main()
