"""Pruning of a model that came from elsewhere, and what can be done with a pruned one."""
import json
import os
import unittest

from filigree_testing import (BAD_INPUT, SystemTest, config, metrics, newest, phase,
                              read_safetensors)
from hf_reference import HfReference

STEPS = 24
TARGET = 42000
# Relative to the largest logit: rounding of fp32 arithmetic over two layers.
FP32_ROUNDING = 2e-6
# Sizes of the stem that every number of heads divides, as an export asks.
PRUNING = ("pruning { target_parameters: %d begin: 0.2 end: 0.7 compact_share: 0.1 "
           "feed_forward { alignment: 4 minimum: 20 } stem { alignment: 12 minimum: 24 } }")


def model_of(checkpoint):
    with open(os.path.join(checkpoint, "manifest.json"), encoding="utf-8") as file:
        return json.load(file)["model"]


def text_of(model):
    """A manifest's model as a configuration's."""
    fields = ("layers", "width", "heads", "kv_heads", "head_size", "feed_forward")
    return "family: LLAMA " + " ".join(f"{field}: {model[field]}" for field in fields)


class PruningStartTest(SystemTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = {}

    def pretrained(self):
        if "source" not in self.made:
            run, hf = self.train("source", config(self.data, phase(20))), self.path("source-hf")
            self.filigree("export", run, "--out", hf, "--dtype", "f32")
            self.made["source"] = run, hf
        return self.made["source"]

    def pruned(self, kind, what, ranks=1):
        if (kind, ranks) not in self.made:
            text = f'init_from: "{what}"\n' + config(self.data, phase(STEPS, PRUNING % TARGET))
            self.made[kind, ranks] = self.train(f"pruned-{kind}-{ranks}", text, ranks=ranks)
        return self.made[kind, ranks]

    def logits_of(self, what, name):
        """Tokens and logits, one list, of the first window, and the mean loss."""
        path = self.path(name)
        result = self.filigree("eval", what, "--data", os.path.join(self.data, "val_*.bin"),
                               "--seq-len", 16, "--tokens", 64, "--logits", path, "--json")
        tensors, _ = read_safetensors(path)
        return (tensors["tokens"].values(), tensors["logits"].values(),
                json.loads(result.stdout)["loss"])

    def assert_same(self, found, expected, what):
        self.assertEqual(len(found), len(expected), what)
        largest = max(map(abs, expected))
        gap = max(abs(a - b) for a, b in zip(found, expected))
        self.assertLess(gap / largest, FP32_ROUNDING, what)

    def test_it_begins_at_the_source_and_ends_as_an_ordinary_model(self):
        source, hf = self.pretrained()
        last = metrics(source)[1][-1]["val_loss"]
        for kind, what, ranks in (("run", source, 1), ("checkpoint", newest(source), 2),
                                  ("hf", hf, 1), ("hf", hf, 2)):
            with self.subTest(kind=kind, ranks=ranks):
                run = self.pruned(kind, what, ranks)
                begun = metrics(run)[1][0]
                self.assertEqual(begun["step"], 0)
                self.assert_close([begun["val_loss"]], [last], 1e-6, kind)
                model = model_of(newest(run))
                self.assertEqual(model["layer_shapes"], [])
                self.assertLess(model["width"] * model["feed_forward"], 48 * 100)
                out = self.path(f"pruned-hf-{kind}-{ranks}")
                self.filigree("export", run, "--out", out, "--dtype", "f32")
                with open(os.path.join(out, "config.json"), encoding="utf-8") as file:
                    exported = json.load(file)
                self.assertEqual(exported["hidden_size"], model["width"])
                self.assertEqual(exported["num_key_value_heads"], model["kv_heads"])
                tokens, logits, _ = self.logits_of(run, "run.safetensors")
                _, back, _ = self.logits_of(out, "out.safetensors")
                self.assert_same(back, logits, "read back")
                reference = [x for row in HfReference(out).logits(tokens) for x in row]
                self.assert_same(logits, reference, "by the specification")

    def test_a_run_and_its_export_prune_alike(self):
        """The f32 export holds the weights of the run, so the same steps follow."""
        source, hf = self.pretrained()
        first, second = self.pruned("run", source), self.pruned("hf", hf)
        losses = [[line["loss"] for line in metrics(run)[0]] for run in (first, second)]
        self.assertEqual(losses[0], losses[1])
        self.assertEqual(model_of(newest(first)), model_of(newest(second)))

    def test_a_pruned_model_is_a_source_again(self):
        """The run, whose norms divide by the old width, and its export, where that is folded."""
        source, _ = self.pretrained()
        run = self.pruned("run", source)
        hf = self.path("again-hf")
        self.filigree("export", run, "--out", hf, "--dtype", "f32")
        with open(os.path.join(hf, "config.json"), encoding="utf-8") as file:
            epsilon = json.load(file)["rms_norm_eps"]
        model = model_of(newest(run))
        less = PRUNING.replace("minimum: 20", "minimum: 4").replace("minimum: 24",
                                                                   "minimum: 12") % 30000

        def text(what, extra):
            return f'init_from: "{what}"\n' + config(self.data, phase(STEPS, less),
                                                    model=f"{text_of(model)} {extra}")
        path = self.write("refused.textproto", text(run, ""))
        result = self.filigree("train", path, "--out", self.path("refused"), code=BAD_INPUT)
        self.assertIn(f"norm_width {model['norm_width']} (config: {model['width']})",
                      result.stderr)
        last = metrics(run)[1][-1]["val_loss"]
        for name, what, extra in (("again-run", run, f"norm_width: {model['norm_width']}"),
                                  ("again-hf", hf, f"norm_epsilon: {epsilon}")):
            with self.subTest(name=name):
                again = self.train(name, text(what, extra))
                self.assert_close([metrics(again)[1][0]["val_loss"]], [last], 1e-6, "loss")
                smaller = model_of(newest(again))
                self.assertLess(smaller["width"] * smaller["feed_forward"],
                                model["width"] * model["feed_forward"])
                self.filigree("generate", again, "--prompt", "ab", "--tokens", "4")
                self.filigree("export", again, "--out", self.path(name + "-hf"))

    def test_layers_that_differ_are_a_source_too(self):
        source, _ = self.pretrained()
        uneven = self.train("uneven", f'init_from: "{source}"\n' + config(
            self.data, phase(STEPS, "pruning { target_parameters: 56000 begin: 0.2 end: 0.7 "
                             "even_layers: false feed_forward { alignment: 1 minimum: 8 } "
                             "attention { enabled: false } stem { enabled: false } }")))
        model = model_of(newest(uneven))
        shapes = model["layer_shapes"]
        self.assertEqual(len(shapes), 2)
        shape = text_of(model) + "".join(
            f" layer_shape {{ heads: {s['heads']} kv_heads: {s['kv_heads']} feed_forward: "
            f"{s['feed_forward']} }}" for s in shapes)
        least = min(s["feed_forward"] for s in shapes)
        layer = [s["feed_forward"] for s in shapes].index(least)

        def text(minimum):
            less = (PRUNING % 30000).replace("minimum: 20", f"minimum: {minimum}").replace(
                "minimum: 24", "minimum: 12")
            return f'init_from: "{uneven}"\n' + config(self.data, phase(STEPS, less), model=shape)
        self.assertNotEqual(*(s["feed_forward"] for s in shapes))
        path = self.write("layer.textproto", text(least + 1))
        result = self.filigree("train", path, "--out", self.path("layer"), code=BAD_INPUT)
        self.assertIn(f"feed_forward.minimum = {least + 1} is more than the {least} there are in "
                      f"layer {layer}", result.stderr)
        run = self.train("evened", text(4))
        last = metrics(uneven)[1][-1]["val_loss"]
        self.assert_close([metrics(run)[1][0]["val_loss"]], [last], 1e-6, "loss")
        self.assertEqual(model_of(newest(run))["layer_shapes"], [])
        self.filigree("export", run, "--out", self.path("evened-hf"))

    def test_a_target_above_the_sources_size_is_refused(self):
        source, _ = self.pretrained()
        text = f'init_from: "{source}"\n' + config(self.data, phase(STEPS, PRUNING % 10**9))
        path = self.write("above.textproto", text)
        result = self.filigree("train", path, "--out", self.path("above"), code=BAD_INPUT)
        self.assertIn("is not below the", result.stderr)
        self.assertFalse(os.path.exists(self.path("above")))


if __name__ == "__main__":
    unittest.main()
