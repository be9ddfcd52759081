"""The same run on 1, 2, 3 and 4 ranks, with and without a sharded optimizer."""
import json
import os
import unittest

from filigree_testing import (GPT2, LLAMA, SystemTest, config, losses, metrics, newest, phase,
                              read_bytes, read_safetensors, sparse)

STEPS = 12


class RanksTest(SystemTest):

    def configuration(self, zero_stage, model, sparsity, optimizer=""):
        # Seven sequences a step: no number of ranks divides them. Small buckets, so that there are
        # several.
        return config(self.data, phase(STEPS, sparsity), model=model, sequences=7,
                      parallel=f"zero_stage: {zero_stage} bucket_megabytes: 0.02",
                      optimizer=optimizer)

    def compare(self, name, model, sparsity):
        reference = self.train(f"{name}-1-0", self.configuration(0, model, sparsity))
        expected, norms = losses(reference), [m["grad_norm"] for m in metrics(reference)[0]]
        self.assertEqual(len(expected), STEPS)
        self.assertLess(expected[-1], expected[0] - 0.5, "the model does not learn")
        weights, _ = read_safetensors(newest(reference), "model.safetensors")
        for ranks in (1, 2, 3, 4):
            for zero_stage in (0, 1):
                if (ranks, zero_stage) == (1, 0):
                    continue
                with self.subTest(ranks=ranks, zero_stage=zero_stage):
                    run = self.train(f"{name}-{ranks}-{zero_stage}",
                                     self.configuration(zero_stage, model, sparsity), ranks=ranks)
                    self.assert_close(losses(run), expected, 1e-4, "loss")
                    self.assert_close([m["grad_norm"] for m in metrics(run)[0]], norms, 1e-3,
                                      "grad_norm")
                    self.assertEqual(read_bytes(newest(run), "layouts.safetensors"),
                                     read_bytes(newest(reference), "layouts.safetensors"))
                    found, _ = read_safetensors(newest(run), "model.safetensors")
                    self.assertEqual({n: t.shape for n, t in found.items()},
                                     {n: t.shape for n, t in weights.items()})
                    for tensor, values in weights.items():
                        gap = max(abs(a - b) for a, b in
                                  zip(found[tensor].values(), values.values()))
                        self.assertLess(gap, 2e-3, tensor)

    def test_block_sparse_llama(self):
        self.compare("llama", LLAMA, sparse())

    def test_masked_gpt2(self):
        self.compare("gpt2", GPT2, sparse("masked", 0.5))

    def test_per_layer_updates(self):
        """With four ranks a step is one micro-batch, and layers take turns in the gradients' memory."""
        for name, model in (("llama", LLAMA), ("gpt2", GPT2)):
            reference = self.train(f"global-{name}", self.configuration(
                0, model, sparse(), "clip_norm: 0"))
            for ranks, zero_stage in ((1, 0), (2, 1), (4, 0), (4, 1)):
                with self.subTest(model=name, ranks=ranks, zero_stage=zero_stage):
                    run = self.train(f"layers-{name}-{ranks}-{zero_stage}", self.configuration(
                        zero_stage, model, sparse(), "clip_norm: 0 update: PER_LAYER"), ranks=ranks)
                    self.assert_close(losses(run), losses(reference), 1e-4, "loss")
                    self.assert_close([m["grad_norm"] for m in metrics(run)[0]],
                                      [m["grad_norm"] for m in metrics(reference)[0]], 1e-3,
                                      "grad_norm")

    def test_more_ranks_than_sequences(self):
        """Ranks without a sample take part with nothing."""
        runs = [self.train(f"few-{ranks}", config(self.data, phase(STEPS, sparse()), sequences=2),
                           ranks=ranks) for ranks in (1, 4)]
        self.assert_close(losses(runs[1]), losses(runs[0]), 1e-4, "loss")

    def test_targets_that_count_unevenly(self):
        """The loss is the mean over all valid targets, however few of them a rank has."""
        space = ord(" ")
        text = config(self.data, phase(STEPS, sparse()), sequences=5).replace(
            "data { ", f"data {{ layout: ONE_DOCUMENT_PER_ROW loss_after_token: {space} ")
        reference = self.train("uneven-1", text)
        for ranks in (2, 3):
            with self.subTest(ranks=ranks):
                run = self.train(f"uneven-{ranks}", text, ranks=ranks)
                self.assert_close(losses(run), losses(reference), 1e-4, "loss")

    def test_checkpoints_hold_logical_arrays(self):
        """Nothing of the vocabulary's padding, of edge blocks, of buckets or of shards."""
        model = LLAMA.replace("width: 48", "width: 54").replace("heads: 6", "heads: 9") + \
            " vocab_size: 263 padded_vocab_size: 320"
        run = self.train("logical", config(self.data, phase(2, sparse()), model=model), ranks=3)
        weights, _ = read_safetensors(newest(run), "model.safetensors")
        moments, _ = read_safetensors(newest(run), "optimizer.safetensors")
        self.assertEqual(weights["embedding.weight"].shape, [263, 54])
        self.assertEqual(weights["final_norm.weight"].shape, [54])
        with open(os.path.join(run, "layers.json"), encoding="utf-8") as file:
            for layer in json.load(file):
                self.assertEqual(weights[layer["name"]].shape, [layer["stored"]])
        self.assertEqual({t.dtype for t in weights.values()}, {"F32"})
        self.assertEqual({name: t.shape for name, t in moments.items()},
                         {f"{name}.{moment}": t.shape for name, t in weights.items()
                          for moment in ("m", "v")})

    def test_two_ranks_sum_alike_at_either_stage(self):
        """Two addends have one order, and without clipping no other sum enters the weights."""
        runs = [self.train(f"exact-{stage}",
                           self.configuration(stage, LLAMA, sparse(), "clip_norm: 0"), ranks=2)
                for stage in (0, 1)]
        self.assertEqual(losses(runs[0]), losses(runs[1]))
        for file in ("model.safetensors", "optimizer.safetensors"):
            tensors = [read_safetensors(newest(run), file)[0] for run in runs]
            self.assertEqual({n: t.data for n, t in tensors[0].items()},
                             {n: t.data for n, t in tensors[1].items()})


if __name__ == "__main__":
    unittest.main()
