"""Sparsity is real: what the program holds and sends for sparse weights, counted by itself."""
import json
import os
import unittest

from filigree_testing import (SystemTest, config, metrics, newest, phase, read_safetensors,
                              sparse)

# Blocks of 32 divide every width; a vocabulary that is no multiple of anything.
EVEN = "family: LLAMA layers: 2 width: 128 heads: 4 kv_heads: 2 feed_forward: 256 vocab_size: 1009"
# Width 80 and feed-forward 200 are no multiples of 32; three key-value heads of 16.
ODD = "family: LLAMA layers: 2 width: 96 heads: 6 kv_heads: 3 feed_forward: 200 vocab_size: 1009"
# Sixteen blocks of 16 in every attention matrix: a quarter of them is a whole number.
EVEN_GPT2 = "family: GPT2 layers: 2 width: 64 heads: 4 max_positions: 32"
F32 = 4
SPARSIFIABLE = (".attention.", ".mlp.")


def weights_of(model):
    """Logical cells of the attention and feed-forward matrices, from the shapes alone."""
    fields = dict(zip(model.split()[::2], model.split()[1::2]))
    number = {name[:-1]: int(value) for name, value in fields.items() if value.isdigit()}
    width, layers = number["width"], number["layers"]
    if "GPT2" in model:
        return layers * 12 * width * width
    head = width // number["heads"]
    attention = width * (2 * width + 2 * number["kv_heads"] * head)
    return layers * (attention + 3 * width * number["feed_forward"])


class BytesTest(SystemTest):

    def plan(self, model, sparsity, ranks=1):
        path = self.write("plan.textproto", config(self.data, phase(4, sparsity), model=model))
        return json.loads(self.filigree("plan", path, "--ranks", ranks, "--json").stdout)

    def test_a_quarter_is_held(self):
        """Of values, gradients and moments, dense minus sparse is three quarters of the weights."""
        for kind in ("block_sparse", "masked"):
            for ranks in (1, 2):
                with self.subTest(kind=kind, ranks=ranks):
                    dense = self.plan(EVEN, "", ranks)["memory_bytes"]
                    quarter = self.plan(EVEN, sparse(kind, 0.75, block=32), ranks)["memory_bytes"]
                    saved = 0.75 * weights_of(EVEN)
                    # Buckets are padded to 256 elements a rank, in two kinds of buckets.
                    padding = 2 * 256 * ranks
                    for field, bytes_each in (("values", F32), ("grads", F32),
                                              ("moments", 2 * F32 / ranks)):
                        found = dense[field] - quarter[field]
                        self.assertLessEqual(abs(found - saved * bytes_each), padding * bytes_each,
                                             f"{field}: saved {found}")
                    self.assertEqual(dense["layouts"], 0)
                    self.assertGreater(quarter["layouts"], 0)

    def test_a_quarter_is_exchanged(self):
        """Bytes of one step, as planned and as counted during a run, on two ranks."""
        for stage in (0, 1):
            sent, planned = [], []
            for name, sparsity in (("dense", ""), ("quarter", sparse(block=32))):
                text = config(self.data, phase(3, sparsity), model=EVEN,
                              parallel=f"zero_stage: {stage}")
                run = self.train(f"sent-{name}-{stage}", text, ranks=2)
                steps = {line["exchanged_bytes"] for line in metrics(run)[0]}
                self.assertEqual(len(steps), 1, "steps differ in what they send")
                sent.append(steps.pop())
                path = self.path(f"sent-{name}-{stage}.textproto")
                plan = json.loads(self.filigree("plan", path, "--ranks", 2, "--json").stdout)
                planned.append(plan["phases"][0]["exchanged_bytes"])
                self.assertEqual(plan["exchanged_bytes_per_step"], sent[-1])
            # The payload of an all-reduce of gradients, or of a reduce-scatter of gradients and an
            # all-gather of values.
            payloads = 1 + stage
            # Buckets are padded to 256 elements a shard, in two kinds of buckets.
            padding = 2 * 256 * 2 * F32 * payloads
            weights = weights_of(EVEN) * F32 * payloads
            self.assertLessEqual(abs(sent[0] - sent[1] - 0.75 * weights), padding)
            dense, quarter = planned
            kept = quarter["sparsified_grads"] + quarter["sparsified_values"]
            self.assertLessEqual(abs(kept - 0.25 * weights), padding)
            self.assertEqual(dense["control"], quarter["control"])

    def test_every_byte_was_planned(self):
        """What a run counts is what `plan` says, to the byte: methods, ZeRO stages, ranks.

        Odd widths and small buckets, so that padding and both kinds of buckets count."""
        methods = {"dense": "", "masked": sparse("masked", 0.6), "blocks": sparse(block=16),
                   "sltrain": 'sparsity { parameterisation: "sparse_plus_low_rank" sparsity: 0.9 '
                              "rank: 8 }"}
        for ranks in (1, 2, 3):
            for stage in (0, 1):
                for name, sparsity in methods.items():
                    with self.subTest(method=name, zero_stage=stage, ranks=ranks):
                        label = f"planned-{name}-{stage}-{ranks}"
                        run = self.train(label, config(
                            self.data, phase(2, sparsity), model=ODD,
                            parallel=f"zero_stage: {stage} bucket_megabytes: 0.05"), ranks=ranks)
                        plan = json.loads(self.filigree(
                            "plan", self.path(label + ".textproto"), "--ranks", ranks,
                            "--json").stdout)
                        self.assertEqual({line["exchanged_bytes"] for line in metrics(run)[0]},
                                         {plan["exchanged_bytes_per_step"]})
                        kinds = plan["phases"][0]["exchanged_bytes"]
                        self.assertEqual(sum(kinds.values()), plan["exchanged_bytes_per_step"])
                        self.assertEqual(kinds["dense_grads"] > 0, ranks > 1)
                        self.assertEqual(kinds["sparsified_grads"] > 0,
                                         ranks > 1 and name != "dense")
                        self.assertEqual(kinds["dense_values"] > 0, ranks > 1 and stage == 1)

    def test_bf16_gradients_send_half(self):
        """Rounded for the wire, or accumulated so: half the bytes of gradients, as planned.

        Every kind of gradient is there, several micro-batches are accumulated, and the losses stay
        near those of F32."""
        methods = {"blocks": (ODD, sparse(block=16)),
                   "masked": (EVEN_GPT2, sparse("masked", 0.6)),
                   "sltrain": (ODD, 'sparsity { parameterisation: "sparse_plus_low_rank" '
                                    "sparsity: 0.9 rank: 8 }")}
        for name, (model, sparsity) in methods.items():
            for stage in (0, 1):
                found = {}
                for dtypes in ("", "wire_dtype: BF16", "grad_dtype: BF16"):
                    with self.subTest(method=name, zero_stage=stage, dtypes=dtypes):
                        label = f"bf16-{name}-{stage}-{dtypes[:4]}"
                        run = self.train(label, config(
                            self.data, phase(4, sparsity), model=model,
                            parallel=f"zero_stage: {stage} bucket_megabytes: 0.05 {dtypes}"),
                            ranks=2)
                        plan = json.loads(self.filigree(
                            "plan", self.path(label + ".textproto"), "--ranks", 2,
                            "--json").stdout)
                        lines = metrics(run)[0]
                        self.assertEqual({line["exchanged_bytes"] for line in lines},
                                         {plan["exchanged_bytes_per_step"]})
                        found[dtypes] = (plan, [line["loss"] for line in lines])
                wide, losses = found.pop("")
                for dtypes, (plan, narrow_losses) in found.items():
                    with self.subTest(method=name, zero_stage=stage, dtypes=dtypes):
                        for kind in ("sparsified_grads", "dense_grads"):
                            sent = plan["phases"][0]["exchanged_bytes"][kind]
                            # The cuts between buckets differ, and so does their padding.
                            self.assertAlmostEqual(
                                sent / wide["phases"][0]["exchanged_bytes"][kind], 0.5, delta=0.03)
                        held = plan["memory_bytes"]["grads"] / wide["memory_bytes"]["grads"]
                        self.assertAlmostEqual(held, 1.5 if "wire" in dtypes else 0.5, delta=0.03)
                        self.assertNotEqual(narrow_losses, losses, "nothing was rounded")
                        for narrow, full in zip(narrow_losses, losses):
                            self.assertAlmostEqual(narrow, full, delta=0.01)

    def test_phases_differ_in_bytes(self):
        """A dense tail sends what the plan of its own phase says."""
        run = self.train("tail", config(self.data, phase(2, sparse(block=16)),
                                        phase(2, sparse("dense", 0)), model=ODD), ranks=2)
        plan = json.loads(self.filigree("plan", self.path("tail.textproto"), "--ranks", 2,
                                        "--json").stdout)
        planned = [each["exchanged_bytes_per_step"] for each in plan["phases"] for _ in range(2)]
        self.assertLess(planned[0], planned[-1])
        self.assertEqual([line["exchanged_bytes"] for line in metrics(run)[0]], planned)

    def test_bench_exchange_replays_the_run(self):
        """`bench exchange` sends the same bytes by kind, and its fit feeds `plan`."""
        path = self.write("replay.textproto", config(
            self.data, phase(4, sparse(block=16)), model=ODD,
            parallel="bucket_megabytes: 0.05"))
        for stage, collectives in ((0, {"all_reduce"}), (1, {"reduce_scatter", "all_gather"})):
            override = f"parallel {{ zero_stage: {stage} }}"
            found = json.loads(self.filigree(
                "bench", "exchange", path, "--override", override, "--steps", 2, "--warmup", 1,
                "--json", ranks=2).stdout)
            plan = json.loads(self.filigree("plan", path, "--override", override, "--ranks", 2,
                                            "--json").stdout)
            sent = found["exchanged_bytes"]
            self.assertEqual(sent.pop("total"), plan["exchanged_bytes_per_step"])
            self.assertEqual(sent, plan["phases"][0]["exchanged_bytes"])
            self.assertEqual({c["collective"] for c in found["collectives"]}, collectives)
            self.assertGreater(found["sparsified_ms"], 0)
            self.assertGreater(found["fit"]["bandwidth_bytes_per_second"], 0)
            scaling = json.loads(self.filigree(
                "plan", path, *found["fit"]["plan_options"].split(), "--step-ms", 5,
                "--json").stdout)["scaling"]
            self.assertEqual([point["gpus"] for point in scaling["points"]],
                             [2 ** i for i in range(3, 13)])
        alone = self.filigree("bench", "exchange", path, code=2)
        self.assertIn("mpirun -np 2", alone.stderr)

    def test_a_quarter_is_in_the_checkpoint(self):
        for name, model in (("even", EVEN), ("gpt2", EVEN_GPT2)):
            with self.subTest(name=name):
                run = self.train(f"stored-{name}", config(
                    self.data, phase(2, sparse(block=16)), model=model))
                for file, arrays in (("model.safetensors", 1), ("optimizer.safetensors", 2)):
                    tensors, _ = read_safetensors(newest(run), file)
                    stored = sum(len(t.data) for n, t in tensors.items()
                                 if any(part in n for part in SPARSIFIABLE) and
                                 n.removesuffix(".m").removesuffix(".v").endswith(".weight"))
                    self.assertEqual(stored, weights_of(model) // 4 * F32 * arrays, file)

    def test_blocks_that_do_not_divide(self):
        """Edge blocks count by their cells inside the weight, everywhere alike."""
        run = self.train("odd", config(self.data, phase(12, sparse(block=32)), model=ODD))
        training, evaluations = metrics(run)
        self.assertLess(evaluations[-1]["val_loss"], evaluations[0]["val_loss"] - 0.5)
        tensors, _ = read_safetensors(newest(run), "model.safetensors")
        stored = sum(t.shape[0] for n, t in tensors.items()
                     if any(part in n for part in SPARSIFIABLE) and n.endswith(".weight"))
        logical = weights_of(ODD)
        self.assertNotEqual(stored, logical // 4, "no edge block cut: this tests nothing")
        sparsity = 1 - stored / logical
        self.assertAlmostEqual(sparsity, 0.75, delta=0.03)
        for line in training:
            self.assertAlmostEqual(line["sparsity"], sparsity, places=6)
        plan = self.plan(ODD, sparse(block=32))
        self.assertAlmostEqual(plan["final_sparsity"], sparsity, places=6)
        table = self.filigree("inspect", run).stdout
        self.assertIn(f"{stored:,}", table)
        with open(os.path.join(run, "layers.json"), encoding="utf-8") as file:
            self.assertEqual(sum(layer["stored"] for layer in json.load(file)), stored)

    def test_masked_counts_exactly(self):
        run = self.train("odd-masked", config(self.data, phase(2, sparse("masked", 0.75)),
                                              model=ODD))
        for line in metrics(run)[0]:
            self.assertAlmostEqual(line["sparsity"], 0.75, delta=1e-4)


if __name__ == "__main__":
    unittest.main()
