"""`plan` for a device that is not here: which one it takes, what it assumes, and what it says of that.

The figures themselves are the unit tests' (planned_gpu_test): here every machine is without a GPU.
"""
import json
import unittest

from filigree_testing import BAD_INPUT, SystemTest, call, config, metrics, phase

CUDA = "parallel { device: CUDA }"


class PlanTest(SystemTest):
    def plan(self, *arguments):
        path = self.write("plan.textproto", config(self.data, phase(4)))
        return self.filigree("plan", path, *arguments).stdout

    def planned(self, *arguments):
        return json.loads(self.plan(*arguments, "--json"))

    def test_a_config_for_gpus_is_planned_for_one(self):
        asked = self.planned("--override", CUDA)
        self.assertEqual(asked["device"]["name"], "cuda")
        self.assertEqual(asked["device"]["values"], "BF16")
        self.assertIn("H100", asked["device"]["card"])
        self.assertFalse(asked["device"]["present"])
        self.assertEqual(asked["device"]["estimated_memory"], ["context", "scratch"])
        self.assertEqual(self.planned("--device", "cuda"), asked)
        # Values in half the bytes, rows padded to 16 of them, a master beside them.
        here = self.planned()
        share = asked["memory_bytes"]["values"] / here["memory_bytes"]["values"]
        self.assertGreater(share, 0.5)
        self.assertLess(share, 0.52)
        self.assertEqual(asked["memory_bytes"]["master"], 2 * asked["memory_bytes"]["values"])
        self.assertEqual(here["memory_bytes"]["master"], 0)
        self.assertEqual(here["device"], {"name": "cpu", "values": "F32", "present": True,
                                          "estimated_memory": []})
        for name, value in here.items():
            self.assertIn(name, asked)
            if name.startswith("parameters"):
                self.assertEqual(asked[name], value)

    def test_it_says_what_it_took(self):
        self.assertIn("--device cuda plans for one", self.plan())
        text = self.plan("--device", "cuda")
        self.assertIn("no GPU is here", text)
        self.assertIn("estimated", text)
        self.assertNotIn("no GPU is here", self.plan("--device", "cpu"))

    def test_the_card_and_its_memory(self):
        named = self.planned("--card", "h200")
        self.assertIn("H200", named["device"]["card"])
        self.assertEqual(self.planned("--memory-gb", "24")["device"]["memory_bytes"], 24e9)
        self.assertIn("leaves", self.plan("--card", "a100"))
        self.assertIn("does not fit", self.plan("--memory-gb", "0.1"))

    def test_ranks_and_the_context(self):
        one, two = (self.planned("--device", "cuda", "--ranks", ranks)["memory_bytes"]
                    for ranks in (1, 2))
        self.assertGreater(two["context"], one["context"])  # NCCL's
        self.assertLess(two["master"], one["master"])
        for kind in ("values", "grads"):  # memory that GPUs reach in each other
            self.assertEqual(two[kind] % 2 ** 21, 0, kind)

    def test_memory_is_what_ranks_hold(self):
        """To the byte, and no more than the sequences that a rank has of a step take."""
        rows = "batch { micro_batch_sequences: 64 }"
        text = config(self.data, phase(2), sequences=6)
        path = self.write("held.textproto", text)
        for ranks in (1, 2, 4):
            with self.subTest(ranks=ranks):
                planned = json.loads(self.filigree("plan", path, "--ranks", str(ranks), "--json",
                                                   "--override", rows).stdout)["memory_bytes"]
                run = self.train(f"held{ranks}", text, "--override", rows, ranks=ranks)
                held = metrics(run)[0][-1]["memory_bytes"]
                # What the host reads of a CPU's memory too: tokens, targets, the loss's scale,
                # losses, the norm.
                tokens = -(-6 // ranks) * 32
                self.assertEqual(held, planned["total"] - planned["context"]
                                 + 4 * (3 * tokens + 1) + 8)

    def test_refused(self):
        path = self.write("plan.textproto", config(self.data, phase(4)))
        for arguments, says in ((["--card", "v100"], "h100"), (["--device", "tpu"], "cuda"),
                                (["--memory-gb", "0"], "memory-gb"),
                                (["--device", "cpu", "--card", "h100"], "--device cuda")):
            with self.subTest(arguments=arguments):
                result = call("plan", path, *arguments)
                self.assertEqual(result.returncode, BAD_INPUT)
                self.assertIn(says, result.stderr)


if __name__ == "__main__":
    unittest.main()
