"""Several phases that prune in one run: what each may ask for, and that the model shrinks in all."""
import json
import os
import unittest

from filigree_testing import (BAD_INPUT, SystemTest, config, losses, newest, phase, read_bytes,
                              read_safetensors, snapshot)
from hf_reference import HfReference

STEPS = 16  # of each phase
FIRST, SECOND = 46000, 38000
ARRAYS = ("model.safetensors", "optimizer.safetensors", "pruning.safetensors")
# Relative to the largest logit: rounding of fp32 arithmetic over two layers.
FP32_ROUNDING = 2e-6


def pruning(target, feed_forward="alignment: 4 minimum: 20", stem="alignment: 12 minimum: 24",
            extra=""):
    return (f"pruning {{ target_parameters: {target} begin: 0.2 end: 0.7 compact_share: 0.02 "
            f"feed_forward {{ {feed_forward} }} stem {{ {stem} }} {extra} }}")


def lines_of(run, what):
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if line.get("topology") == what]


def model_of(checkpoint):
    with open(os.path.join(checkpoint, "manifest.json"), encoding="utf-8") as file:
        return json.load(file)["model"]


class PruningPhasesTest(SystemTest):

    def run_text(self, first, second, *later, extra="moments: KEEP"):
        return config(self.data, phase(STEPS, 'name: "shrink"', first),
                      phase(STEPS, 'name: "again"', extra, second), *later,
                      checkpoint="every_steps: 4 keep_last: 0")

    def stems_going_first(self, second):
        """The first phase may take stem channels only, in steps of 12 of 48."""
        return self.run_text(pruning(52000, feed_forward="enabled: false",
                                 extra="attention { enabled: false }"), second)

    def test_the_model_shrinks_in_each_and_resumes_between_them(self):
        text = self.run_text(pruning(FIRST), pruning(SECOND))
        uncut = {ranks: self.train(f"uncut-{ranks}", text, ranks=ranks) for ranks in (1, 2)}
        for ranks, run in uncut.items():
            compactions = lines_of(run, "compaction")
            early = [line for line in compactions if line["step"] <= STEPS]
            late = [line for line in compactions if line["step"] > STEPS]
            self.assertGreaterEqual(len(early), 1)
            self.assertGreaterEqual(len(late), 1)
            self.assertLessEqual(early[-1]["stored_values"], FIRST)
            self.assertGreater(early[-1]["stored_values"], SECOND)
            self.assertLessEqual(late[-1]["stored_values"], SECOND)
            self.assertEqual(model_of(newest(run))["layer_shapes"], [])
        last = lines_of(uncut[2], "compaction")[-1]["step"] // 4 * 4
        for saved, step in ((1, STEPS), (2, STEPS), (2, STEPS + 4), (2, last)):
            for ranks in (1, 2, 3):
                with self.subTest(saved=saved, step=step, ranks=ranks):
                    name = f"cut-{saved}-{step}-{ranks}"
                    self.cut_copy(name, uncut[saved], step)
                    run = self.train(name, text, ranks=ranks)
                    if ranks == saved:
                        self.assertEqual(losses(run), losses(uncut[saved]))
                        for file in ARRAYS:
                            self.assertEqual(read_bytes(newest(run), file),
                                             read_bytes(newest(uncut[saved]), file), file)
                    else:
                        self.assert_close(losses(run)[step:step + 1],
                                          losses(uncut[saved])[step:step + 1], 1e-6, "next loss")
                        self.assertLessEqual(lines_of(run, "compaction")[-1]["stored_values"],
                                             SECOND)
        self.check_export(uncut[2])

    def check_export(self, run):
        out = self.path("hf")
        self.filigree("export", run, "--out", out, "--dtype", "f32")
        found = []
        for what, name in ((run, "run.safetensors"), (out, "out.safetensors")):
            path = self.path(name)
            self.filigree("eval", what, "--data", os.path.join(self.data, "val_*.bin"),
                          "--seq-len", 16, "--tokens", 64, "--logits", path)
            tensors, _ = read_safetensors(path)
            found.append(tensors["logits"].values())
            tokens = tensors["tokens"].values()
        found.append([x for row in HfReference(out).logits(tokens) for x in row])
        largest = max(map(abs, found[0]))
        for other in found[1:]:
            gap = max(abs(a - b) for a, b in zip(found[0], other, strict=True))
            self.assertLess(gap / largest, FP32_ROUNDING)

    def test_what_earlier_phases_cannot_leave_is_refused_before_the_run(self):
        for name, text, says in (
                ("target", self.run_text(pruning(FIRST), pruning(FIRST)),
                 f"phase again: pruning target_parameters = {FIRST} is not below the {FIRST} that "
                 "the phases before leave at most"),
                ("stem", self.stems_going_first(pruning(SECOND, stem="alignment: 12 minimum: 48")),
                 "phase again: pruning stem.minimum = 48 is more than the 36 that the phases before "
                 "can leave; lower it or set enabled: false"),
                ("alignment", self.stems_going_first(pruning(SECOND, stem="alignment: 40")),
                 "phase again: pruning stem.alignment = 40 is more than the 36 that"),
                ("floor", self.run_text(pruning(FIRST), pruning(
                    SECOND - 20000, feed_forward="alignment: 4 minimum: 60")),
                 "phase again: pruning target_parameters = 18000 is below the floors")):
            path, out = self.write(name + ".textproto", text), self.path(name)
            for command in (("plan", path), ("train", path, "--out", out)):
                with self.subTest(name=name, command=command[0]):
                    result = self.filigree(*command, code=BAD_INPUT)
                    self.assertIn(says, result.stderr)
                    self.assertEqual(result.stderr.count("pruning"), 1, result.stderr)
            self.assertFalse(os.path.exists(out))

    def test_what_only_the_first_phase_decides_is_refused_before_the_second(self):
        """Scores might have spared the stem; the run goes on once the second phase asks for less."""
        asks = self.run_text(pruning(FIRST), pruning(SECOND, stem="alignment: 12 minimum: 48"))
        path, run = self.write("asks.textproto", asks), self.path("asks")
        says = "phase again: pruning stem.minimum = 48 is more than the 36 there are"
        for ranks in (1, 2):  # the second call would go on from the first one's checkpoint
            with self.subTest(ranks=ranks):
                before = snapshot(run) if ranks == 2 else None
                result = self.filigree("train", path, "--out", run, ranks=ranks, code=BAD_INPUT)
                self.assertIn(says, result.stderr)
                self.assertTrue(newest(run).endswith(f"{STEPS:08}"))
                if before:
                    self.assertEqual(snapshot(run), before)
        self.assertEqual(model_of(newest(run))["width"], 36)
        mended = self.train("asks", self.run_text(pruning(FIRST), pruning(SECOND)))
        self.assertLessEqual(lines_of(mended, "compaction")[-1]["stored_values"], SECOND)
        self.assertEqual(len(losses(mended)), 2 * STEPS)

    def test_what_has_no_time_to_shrink_to_zero_stays(self):
        """A ramp that its events do not finish, and one after it: compacted late or often."""
        def ramp(target, share, extra=""):
            return (f"pruning {{ target_parameters: {target} begin: 0.1 end: 0.7 compact_share: "
                    f"{share} feed_forward {{ alignment: 4 minimum: 8 }} stem {{ alignment: 8 "
                    f"minimum: 16 }} {extra} }}")

        def text(share):
            slow = ramp(45000, share, "removal: PROGRESSIVE shrink_steps: 3 units_per_event: 12")
            return config(self.data, phase(24, slow), phase(6, "moments: KEEP"),
                          phase(24, "moments: KEEP", ramp(30000, share)))
        late, often = (self.train(f"share-{share}", text(share)) for share in ("0.95", "0.001"))
        self.assertEqual(len(lines_of(late, "compaction")), 2)  # where each ramp is over
        self.assertGreater(len(lines_of(often, "compaction")), 5)
        removals = [[line["live_values"] for line in lines_of(run, "pruning")]
                    for run in (late, often)]
        self.assertEqual(*removals)
        self.assert_close(losses(often), losses(late), 1e-5, "loss")

    def test_a_run_cut_after_its_ramp_ends_with_the_same_bits(self):
        text = config(self.data, phase(24, pruning(FIRST, extra="interval: 3")),
                      checkpoint="every_steps: 2 keep_last: 0")
        uncut = self.train("over", text)
        last = lines_of(uncut, "compaction")[-1]["step"]
        for step in range((last + 1) // 2 * 2, 24, 2):
            with self.subTest(step=step):
                self.cut_copy(f"over-{step}", uncut, step)
                run = self.train(f"over-{step}", text)
                for file in ARRAYS:
                    self.assertEqual(read_bytes(newest(run), file),
                                     read_bytes(newest(uncut), file), file)
        # Asked for less, the ramp goes on.
        self.cut_copy("more", uncut, 22)
        more = self.train("more", config(self.data, phase(48, pruning(SECOND)),
                                         checkpoint="every_steps: 2 keep_last: 0"))
        self.assertLessEqual(lines_of(more, "compaction")[-1]["stored_values"], SECOND)

    def test_weights_that_a_smaller_model_cannot_have_are_refused_before_their_phase(self):
        for name, sparsity, says in (
                ("blocks", 'parameterisation: "block_sparse" block_out: 8 block_in: 48',
                 "blocks of 8 x 48 are larger than the weight"),
                ("n_m", 'parameterisation: "n_m" n: 2 m: 16', "does not consist of whole rows")):
            with self.subTest(name=name):
                text = config(self.data, phase(STEPS, pruning(FIRST)),
                              phase(4, f'name: "sparse" sparsity {{ {sparsity} '
                                       'include: "*attention.q.weight" }'))
                path, run = self.write(name + ".textproto", text), self.path(name)
                for _ in range(2):
                    result = self.filigree("train", path, "--out", run, code=BAD_INPUT)
                    self.assertIn("phase sparse: ", result.stderr)
                    self.assertIn(says, result.stderr)
                    self.assertTrue(newest(run).endswith(f"{STEPS:08}"))


if __name__ == "__main__":
    unittest.main()
