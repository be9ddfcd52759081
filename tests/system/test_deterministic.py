"""The CPU's deterministic mode: the same bits at any number of ranks."""
import json
import unittest

from filigree_testing import (SystemTest, config, losses, metrics, newest, phase, read_bytes,
                              read_safetensors, sparse)
from test_topology import ARRAYS, rule, topology

MODE = "deterministic: true"


def arrays(run):
    """Every tensor of the newest checkpoint: values, moments, layouts."""
    found = {}
    for file in ARRAYS:
        for name, tensor in read_safetensors(newest(run), file)[0].items():
            found[file, name] = tensor.data
    return found


class DeterministicTest(SystemTest):

    def assert_same_at_any_ranks(self, name, *phases, ranks=(1, 2, 4), stages=(0, 1), **arguments):
        """Sequences that no number of ranks divides, more than one micro-batch a rank."""
        reference = None
        for count in ranks:
            for stage in stages:
                if (count, stage) == (1, 0):
                    continue
                run = self.train(f"{name}-{count}-{stage}", config(
                    self.data, *phases, parallel=f"{MODE} zero_stage: {stage}", sequences=7,
                    **arguments), ranks=count)
                lines = [{key: line[key] for key in ("loss", "grad_norm", "sparsity")}
                         for line in metrics(run)[0]]
                if reference is None:
                    reference = lines, topology(run), arrays(run)
                    continue
                with self.subTest(name, ranks=count, zero_stage=stage):
                    self.assertEqual(lines, reference[0])
                    moves = [[{k: v for k, v in line.items() if k != "exchanged_bytes"}
                              for line in lines] for lines in (topology(run), reference[1])]
                    self.assertEqual(*moves)
                    self.assertEqual(arrays(run), reference[2])

    def test_rules_that_read_gradients(self):
        for name, fields in (("rigl", ()), ("gradual_magnitude", ('criterion: "taylor"',)),
                             ("gradual_magnitude", ('criterion: "wanda"',)),
                             ("granet", ("drop_fraction: 0.3",))):
            for parameterisation in ("masked", "block_sparse"):
                self.assert_same_at_any_ranks(
                    "-".join((name, parameterisation, str(len(fields)), fields[0][-7:-1]
                              if fields else "")),
                    phase(10, rule(name, "update_interval: 3", *fields,
                                   parameterisation=parameterisation)), stages=(1,))

    def test_pruning_at_initialisation(self):
        for criterion in ("snip", "grasp"):
            self.assert_same_at_any_ranks(
                criterion, phase(3, rule("one_shot", f'criterion: "{criterion}"')), stages=(1,))

    def test_zero_stages_and_more_ranks_than_sequences(self):
        self.assert_same_at_any_ranks("few", phase(6, rule("rigl", "update_interval: 2")),
                                      ranks=(1, 2, 3, 4, 8))

    def test_the_mode_is_what_makes_them_equal(self):
        """Without it rounding differs: these tests can fail."""
        runs = [self.train(f"plain-{ranks}", config(
            self.data, phase(10, rule("rigl", "update_interval: 3")), sequences=7), ranks=ranks)
            for ranks in (1, 2)]
        self.assertNotEqual(losses(runs[0]), losses(runs[1]))
        for a, b in zip(*map(losses, runs)):
            self.assertAlmostEqual(a, b, places=2)

    def test_agrees_with_the_plain_sum(self):
        """The same gradients but for rounding."""
        plain, tree = (self.train(f"sum-{name}", config(
            self.data, phase(4, sparse()), parallel=mode), ranks=2)
            for name, mode in (("plain", ""), ("tree", MODE)))
        self.assert_close(losses(tree), losses(plain), 1e-5, "loss")
        self.assert_close(*([line["grad_norm"] for line in metrics(run)[0]]
                            for run in (tree, plain)), 1e-4, "grad_norm")

    def test_resume(self):
        text = config(self.data, phase(10, rule("rigl", "update_interval: 3")),
                      parallel=MODE, checkpoint="every_steps: 5 keep_last: 0")
        whole = self.train("whole", text, ranks=2)
        first = self.path("whole", "checkpoints", "step_00000005")
        path = self.write("on.textproto", text)
        self.filigree("train", path, "--out", self.path("on"), "--resume", first, ranks=4)
        self.assertEqual(losses(self.path("on")), losses(whole)[5:])
        self.assertEqual(read_bytes(newest(self.path("on")), ARRAYS[0]),
                         read_bytes(newest(whole), ARRAYS[0]))

    def test_every_byte_was_planned(self):
        for ranks in (2, 3):
            for stage in (0, 1):
                name = f"bytes-{ranks}-{stage}"
                run = self.train(name, config(
                    self.data, phase(3, sparse()), sequences=7,
                    parallel=f"{MODE} zero_stage: {stage}"), ranks=ranks)
                plan = json.loads(self.filigree("plan", self.path(name + ".textproto"), "--ranks",
                                                ranks, "--json").stdout)
                self.assertEqual({line["exchanged_bytes"] for line in metrics(run)[0]},
                                 {plan["exchanged_bytes_per_step"]}, name)


if __name__ == "__main__":
    unittest.main()
