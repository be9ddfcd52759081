"""Sparse model soups: the average of models trained on from one pruned parent."""
import os
import unittest

from filigree_testing import (RefusalTest, config, metrics, newest, phase, read_safetensors)
from test_topology import rule


class SoupTest(RefusalTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.parent_phase = phase(6, rule("gradual_magnitude", "update_interval: 2"))

    def children(self, parent):
        """Two runs that go on from the parent at other learning rates."""
        found = []
        for lr in ("2e-3", "1e-3"):
            text = config(self.data, self.parent_phase, phase(
                4, f"moments: KEEP schedule {{ lr: {lr} }}", rule("inherit")))
            path = self.write(f"child-{lr}.textproto", text)
            self.filigree("train", path, "--out", self.path("child-" + lr), "--resume", parent)
            found.append(self.path("child-" + lr))
        return found

    def test_the_average_is_as_sparse_and_trains_on(self):
        parent = self.train("parent", config(self.data, self.parent_phase))
        children = self.children(newest(parent))
        soup = self.path("soup")
        self.filigree("soup", *children, "--out", soup)
        layouts = [{name: tensor.data for name, tensor in
                    read_safetensors(path, "layouts.safetensors")[0].items()}
                   for path in (soup, newest(parent))]
        self.assertEqual(*layouts)
        mean, _ = read_safetensors(soup, "model.safetensors")
        a, b = (read_safetensors(newest(child), "model.safetensors")[0] for child in children)
        differ = 0
        for name, tensor in mean.items():
            for found, x, y in zip(tensor.values(), a[name].values(), b[name].values()):
                self.assertAlmostEqual(found, (x + y) / 2, delta=1e-7 * (1 + abs(x) + abs(y)))
                differ += x != y
        self.assertGreater(differ, 0)
        self.filigree("eval", soup, "--data", os.path.join(self.data, "val_*.bin"))
        self.filigree("export", soup, "--out", self.path("soup-hf"))
        text = config(self.data, phase(2, rule("gradual_magnitude", "initial_sparsity: 0.75",
                                                 "update_interval: 1")))
        path = self.write("on.textproto", text)
        self.filigree("train", path, "--out", self.path("on"), "--resume", soup)
        self.assertEqual({line["sparsity"] for line in metrics(self.path("on"))[0]}, {0.75})

    def test_refusals(self):
        other = self.train("other-seed", "seed: 5\n" + self.good)
        says = "layers.0.attention.q.weight has different layouts"
        self.refused("soup", self.run_dir, other, "--out", self.path("no"), says=(says,))
        self.refused("soup", self.run_dir, "--out", self.path("no"), says=("at least two",))
        wide = self.train("wide", config(self.data, phase(2), model="family: GPT2 layers: 1 "
                                         "width: 32 heads: 2 max_positions: 32"))
        self.refused("soup", self.run_dir, wide, "--out", self.path("no"),
                     says=("different models",))
        factors = self.train("factors", config(self.data, phase(2, 'sparsity { parameterisation: '
                                                                '"low_rank" rank: 4 }')))
        self.refused("soup", factors, factors, "--out", self.path("no"), says=("low-rank factor",))
        self.refused("soup", self.run_dir, self.run_dir, "--out", self.hf,
                     says=("is there already",))
        # A sparse model without moments starts only what stores it so.
        soup = self.path("twice")
        self.filigree("soup", self.run_dir, self.run_dir, "--out", soup)
        dense = self.write("dense.textproto", config(self.data, phase(2)))
        self.refused("train", dense, "--out", self.path("no"), "--resume", soup,
                     says=("layers.0.attention.q.weight is stored as",))


if __name__ == "__main__":
    unittest.main()
