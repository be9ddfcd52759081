"""Runs that start from another model: Hugging Face directories, checkpoints and runs."""
import json
import os
import re
import shutil
import struct
import unittest

from filigree_testing import (GPT2, LLAMA, RefusalTest, SystemTest, config, losses,
                              metrics, newest, phase, read_bytes, read_safetensors, sparse)

# No step moves a weight, so that what a run saves is what it started from.
FROZEN = "shape: CONSTANT warmup_steps: 0"
FAMILIES = (("llama", LLAMA), ("tied", LLAMA + " tied_head: true head_size: 12"), ("gpt2", GPT2))


def starting_from(what, text):
    return f'init_from: "{what}"\n{text}'


def frozen(text):
    return text.replace("lr: 1e-2", "lr: 0")


class StartTest(SystemTest):

    def source(self, model=LLAMA, name="llama", sparsity=""):
        """A trained run and its fp32 export."""
        run, hf = self.path("source-" + name), self.path("hf-" + name)
        if not os.path.exists(run):
            self.train("source-" + name, config(self.data, phase(5, sparsity), model=model))
            self.filigree("export", run, "--out", hf, "--dtype", "f32")
        return run, hf

    def weights(self, run, name):
        """The dense weights of a run, by Hugging Face name."""
        directory = self.path(name)
        self.filigree("export", run, "--out", directory, "--dtype", "f32")
        return {key: tensor.values() for key, tensor in
                read_safetensors(directory, "model.safetensors")[0].items()}

    def test_it_begins_where_the_other_ended(self):
        """The first evaluation is the source's last, from every kind of source, at any rank count."""
        for name, model in FAMILIES:
            run, hf = self.source(model, name)
            last = metrics(run)[1][-1]["val_loss"]
            for kind, what in (("run", run), ("checkpoint", newest(run)), ("hf", hf)):
                for ranks in (1, 3) if kind == "hf" else (1,):
                    with self.subTest(name=name, kind=kind, ranks=ranks):
                        text = starting_from(what, config(self.data, phase(2), model=model))
                        begun = self.train(f"begun-{name}-{kind}-{ranks}", text, ranks=ranks)
                        self.assert_close([metrics(begun)[1][0]["val_loss"]], [last], 1e-6, kind)
                        self.assertIn(f'init_from: "{what}"',
                                      read_bytes(begun, "config.textproto").decode())

    def test_shards_of_half_floats(self):
        """A directory as others save it: several files, an index, F16."""
        _, hf = self.source()
        sharded = self.path("sharded")
        os.makedirs(sharded)
        shutil.copy(os.path.join(hf, "config.json"), sharded)
        tensors = sorted(read_safetensors(hf, "model.safetensors")[0].items())
        index, expected = {}, {}
        for i, part in enumerate((tensors[:5], tensors[5:11], tensors[11:])):
            file, header, body = f"model-{i + 1:05}-of-00003.safetensors", {}, b""
            for name, tensor in part:
                halves = struct.pack(f"<{len(tensor.values())}e", *tensor.values())
                header[name] = {"dtype": "F16", "shape": tensor.shape,
                                "data_offsets": [len(body), len(body) + len(halves)]}
                body += halves
                index[name] = file
                expected[name] = list(struct.unpack(f"<{len(halves) // 2}e", halves))
            text = json.dumps(header).encode()
            with open(os.path.join(sharded, file), "wb") as out:
                out.write(struct.pack("<Q", len(text)) + text + body)
        self.write(os.path.join("sharded", "model.safetensors.index.json"),
                   json.dumps({"metadata": {}, "weight_map": index}))
        run = self.train("from-shards", starting_from(sharded, frozen(config(
            self.data, phase(2), schedule=FROZEN))), ranks=2)
        self.assertEqual(self.weights(run, "from-shards-hf"), expected)

    def test_masks_are_drawn_and_pruned_from_the_weights(self):
        """A random mask keeps the weights under it, a one-shot one the largest of each matrix."""
        _, hf = self.source()
        tensors = read_safetensors(hf, "model.safetensors")[0]
        before = {name: tensor.values() for name, tensor in tensors.items()}
        for rule, ranks in (("static_random", 1), ("one_shot", 1), ("one_shot", 2)):
            with self.subTest(rule=rule, ranks=ranks):
                entry = sparse("masked", 0.5).replace("}", f' rule: "{rule}" distribution: "uniform" }}')
                name = f"masked-{rule}-{ranks}"
                run = self.train(name, starting_from(hf, frozen(config(
                    self.data, phase(2, entry), schedule=FROZEN))), ranks=ranks)
                pruned = 0
                for key, values in self.weights(run, name + "-hf").items():
                    if not re.search(r"(attn|mlp).*weight", key):
                        self.assertEqual(values, before[key], key)
                        continue
                    pruned += 1
                    kept = [b for a, b in zip(values, before[key]) if a != 0]
                    self.assertEqual(kept, [a for a in values if a != 0], key)
                    self.assertAlmostEqual(len(kept) / len(values), 0.5, delta=0.001)
                    if rule == "one_shot":
                        dropped = [b for a, b in zip(values, before[key]) if a == 0]
                        self.assertGreaterEqual(min(map(abs, kept)), max(map(abs, dropped)), key)
                self.assertEqual(pruned, 14)

    def test_layouts_are_inherited(self):
        run, _ = self.source(name="sparse", sparsity=sparse("masked", 0.75))
        entry = sparse("masked", 0.75).replace("}", ' rule: "inherit" }')
        begun = self.train("inherits", starting_from(run, frozen(config(
            self.data, phase(2, entry), schedule=FROZEN))))
        for file in ("model.safetensors", "layouts.safetensors"):
            found, expected = (read_safetensors(newest(of), file)[0] for of in (begun, run))
            self.assertEqual({name: tensor.data for name, tensor in found.items()},
                             {name: tensor.data for name, tensor in expected.items()}, file)

    def test_factors_become_weights(self):
        entry = sparse("sparse_plus_low_rank", 0.75).replace("}", " rank: 4 alpha: 8 }")
        run, _ = self.source(name="factors", sparsity=entry)
        for name, sparsity in (("merged", ""), ("kept", entry)):
            with self.subTest(name=name):
                begun = self.train("factors-" + name, starting_from(
                    run, config(self.data, phase(2, sparsity))))
                # A static random mask is the seed's, so that S is the same again.
                self.assert_close([metrics(begun)[1][0]["val_loss"]],
                                  [metrics(run)[1][-1]["val_loss"]], 1e-5, name)

    def test_a_resumed_run_does_not_read_it_again(self):
        _, hf = self.source()
        copy = self.path("vanishing")
        shutil.copytree(hf, copy)
        text = starting_from(copy, config(self.data, phase(6, sparse()),
                                          checkpoint="every_steps: 2 keep_last: 0"))
        uncut = self.train("uncut", text, ranks=2)
        cut = self.cut_copy("cut", uncut, 2)
        shutil.rmtree(copy)
        self.train("cut", text, ranks=2)
        self.assertEqual(losses(cut), losses(uncut))
        self.assertEqual(read_bytes(newest(cut), "model.safetensors"),
                         read_bytes(newest(uncut), "model.safetensors"))

    def test_rewinding_to_the_start_goes_back_to_it(self):
        _, hf = self.source()
        entry = sparse("masked", 0.5).replace("}", ' rule: "iterative_magnitude" }')
        # The second phase trains nothing: its survivors are where they started.
        text = starting_from(hf, config(
            self.data, phase(2), phase(2, entry, "rewind_step: 0", "schedule { lr: 0 warmup_steps: 0 }")))
        run = self.train("rewound", text)
        before = read_safetensors(hf, "model.safetensors")[0]
        for key, values in self.weights(run, "rewound-hf").items():
            expected = before[key].values()
            self.assertEqual([a for a in values if a != 0],
                             [b for a, b in zip(values, expected) if a != 0], key)


class RefusedStartTest(RefusalTest):

    def start(self, what, text, *says):
        path = os.path.join(self.work, "start.textproto")
        with open(path, "w", encoding="utf-8") as file:
            file.write(starting_from(what, text))
        self.refused("train", path, "--out", self.path("refused"), says=says)
        self.refused("train", path, "--out", self.path("refused"), says=says, ranks=2)

    def test_another_shape(self):
        self.start(self.hf, self.good.replace("width: 48", "width: 60"),
                   self.hf, "width 48 (config: 60)", "head_size 8 (config: 10)", "init_from")
        self.start(self.run_dir, self.good.replace("feed_forward: 100", "feed_forward: 96"),
                   "feed_forward 100 (config: 96)")

    def test_not_a_model(self):
        self.start(self.path("nowhere"), self.good, "nowhere", "config.json")
        self.start(self.data, self.good, "data")

    def test_another_tokenizer(self):
        other = self.path("other-data")
        if not os.path.exists(other):
            self.filigree("prepare", "--input", self.text, "--tokenizer",
                          "train-sentencepiece:300", "--out", other)
            self.train("other", config(other, phase(2)))
            # The same number of ids, other ids.
            self.filigree("prepare", "--input", self.text + "/00*.txt", "--tokenizer",
                          "train-sentencepiece:300", "--val-fraction", "0.3", "--out",
                          self.path("third-data"))
        self.start(self.path("other"), config(self.path("third-data"), phase(2)),
                   "third-data", "another tokenizer", "tokenizer.model")
        self.refused("eval", self.path("other"), "--data",
                     os.path.join(self.path("third-data"), "val_*.bin"),
                     says=("another tokenizer",))

    def test_a_nonlinear_model_has_no_weights(self):
        cola = sparse("cola", 0).replace("}", " rank: 4 }")
        if not os.path.exists(self.path("cola")):
            self.train("cola", config(self.data, phase(2, cola)))
        self.start(self.path("cola"), self.good, "silu between them")

    def test_dense_weights_have_no_factors(self):
        self.start(self.hf, config(self.data, phase(2, sparse("low_rank", 0).replace(
            "}", " rank: 4 }"))), "without low-rank factors")


if __name__ == "__main__":
    unittest.main()
