"""A run that was cut and resumed is, bit for bit, the run that was not cut."""
import os
import signal
import time
import unittest

from filigree_testing import (BAD_INPUT, DONE, GPT2, LLAMA, STOPPED, SystemTest, call,
                              checkpoints, config, losses, metrics, newest, phase, read_bytes, sparse, start)

SPARSE_STEPS, DENSE_STEPS = 8, 7
STEPS = SPARSE_STEPS + DENSE_STEPS
ARRAYS = ("model.safetensors", "optimizer.safetensors", "layouts.safetensors")


def ranks_below(pid):
    """Process ids of the binary's processes among the descendants of `pid`, oldest first."""
    children = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        children.setdefault(int(rest.split()[1]), []).append((int(entry), name))
    found, queue = [], [pid]
    while queue:
        for child, name in sorted(children.get(queue.pop(), [])):
            queue.append(child)
            if name == "filigree":
                found.append(child)
    return sorted(found)


class ResumeTest(SystemTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.two_phases = config(
            cls.data, phase(SPARSE_STEPS, sparse()), phase(DENSE_STEPS, "schedule { lr: 5e-3 }"),
            checkpoint="every_steps: 3 keep_last: 0")
        cls.uncut = {}

    def uncut_run(self, ranks):
        if ranks not in self.uncut:
            self.uncut[ranks] = self.train(f"uncut-{ranks}", self.two_phases, ranks=ranks)
            self.assertEqual(checkpoints(self.uncut[ranks]),
                             [f"step_{step:08}" for step in (3, 6, 8, 9, 12, 15)])
        return self.uncut[ranks]

    def assert_same_run(self, run, uncut):
        self.assertEqual(losses(run), losses(uncut))
        self.assertEqual([m["grad_norm"] for m in metrics(run)[0]],
                         [m["grad_norm"] for m in metrics(uncut)[0]])
        self.assertEqual({e["step"]: e["val_loss"] for e in metrics(run)[1]},
                         {e["step"]: e["val_loss"] for e in metrics(uncut)[1]})
        self.assertEqual(os.path.basename(newest(run)), f"step_{STEPS:08}")
        for file in ARRAYS:
            self.assertEqual(read_bytes(newest(run), file), read_bytes(newest(uncut), file), file)

    def cut_copy(self, name, uncut, step):
        """The uncut run as a crash after `step` would have left it."""
        run = super().cut_copy(name, uncut, step)
        # What a crash in the middle of a checkpoint and of a line leaves.
        os.makedirs(os.path.join(run, "checkpoints", f".step_{step + 1:08}.partial"))
        with open(os.path.join(run, "metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write('{"step": 9')
        return run

    def test_crash_in_either_phase_and_between(self):
        for ranks in (1, 2):
            for step in (6, SPARSE_STEPS, 9):
                with self.subTest(ranks=ranks, step=step):
                    name = f"cut-{ranks}-{step}"
                    self.cut_copy(name, self.uncut_run(ranks), step)
                    self.train(name, self.two_phases, ranks=ranks)
                    self.assert_same_run(self.path(name), self.uncut_run(ranks))

    def test_a_checkpoint_given_by_path(self):
        begin = os.path.join(self.uncut_run(1), "checkpoints", "step_00000006")
        run = self.train("from-path", self.two_phases, "--resume", begin)
        self.assertEqual(losses(run), losses(self.uncut_run(1))[6:])
        for file in ARRAYS:
            self.assertEqual(read_bytes(newest(run), file),
                             read_bytes(newest(self.uncut_run(1)), file), file)

    def test_a_shorter_run_lengthened(self):
        """Constant rates do not depend on the length, so a longer run contains the shorter one."""
        def run_of(steps):
            return config(self.data, phase(steps, sparse()),
                          schedule="shape: CONSTANT warmup_steps: 2")
        whole = self.train("long", run_of(10))
        self.train("lengthened", run_of(4))
        run = self.train("lengthened", run_of(10))
        self.assertEqual(losses(run), losses(whole))
        for file in ARRAYS:
            self.assertEqual(read_bytes(newest(run), file), read_bytes(newest(whole), file), file)
        self.assertTrue(os.path.exists(os.path.join(run, "config.1.textproto")))

    def resumed(self, before, after):
        """Trains 2 steps of a text and goes on to 4 with another: the second call."""
        run = self.path(f"changed-{len(os.listdir(self.work))}")
        for text, code in ((before, DONE), (after, None)):
            path = self.write("changed.textproto", text)
            result = call("train", path, "--out", run)
            if code is not None:
                self.assertEqual(result.returncode, code, result.stderr)
        return result

    def test_what_was_configured_otherwise_is_told(self):
        small = config(self.data, phase(2), model=GPT2)
        codes = GPT2 + " gelu_derivative_bits: 8"
        longer = config(self.data, phase(4), model=GPT2, schedule="warmup_steps: 1")
        same = self.resumed(small, small)
        self.assertNotIn("not as it was configured", same.stderr)
        result = self.resumed(small, longer.replace(GPT2, codes))
        self.assertEqual(result.returncode, DONE, result.stderr)
        for change in ("model.gelu_derivative_bits 8 (was 0)", "phase.steps 4 (was 2)",
                       "schedule.warmup_steps 1 (was 2)"):
            self.assertIn(change, result.stderr)

    def test_another_gate_is_another_model(self):
        text = config(self.data, phase(2))
        gated = config(self.data, phase(4), model=LLAMA + " gate_activation: IDENTITY")
        result = self.resumed(text, gated)
        self.assertEqual(result.returncode, BAD_INPUT, result.stdout)
        self.assertIn("gate_activation SILU (config: IDENTITY)", result.stderr)

    def test_another_number_of_ranks_goes_on(self):
        for before, after in ((2, 1), (1, 3)):
            with self.subTest(before=before, after=after):
                name = f"moved-{before}-{after}"
                uncut = self.uncut_run(before)
                self.cut_copy(name, uncut, 6)
                run = self.train(name, self.two_phases, ranks=after)
                self.assertEqual(losses(run)[:6], losses(uncut)[:6])
                # The first loss after the cut depends on weights and data only: same data order.
                self.assert_close(losses(run)[6:7], losses(uncut)[6:7], 1e-6, "next loss")
                self.assert_close(losses(run), losses(uncut), 1e-4, "loss")

    def test_another_zero_stage_goes_on(self):
        """A checkpoint knows nothing of shards."""
        uncut = self.uncut_run(2)
        self.cut_copy("unsharded", uncut, 6)
        run = self.train("unsharded", self.two_phases.replace(
            "parallel { ", "parallel { zero_stage: 0 "), ranks=2)
        self.assert_close(losses(run)[6:7], losses(uncut)[6:7], 1e-6, "next loss")
        self.assert_close(losses(run), losses(uncut), 1e-4, "loss")

    def test_bf16_gradients_go_on_to_the_bit(self):
        """Gradients are no state: nothing of their dtype is in a checkpoint."""
        for dtypes in ("wire_dtype: BF16", "grad_dtype: BF16"):
            with self.subTest(dtypes=dtypes):
                text = self.two_phases.replace("parallel { ", f"parallel {{ {dtypes} ")
                name = dtypes.split(":")[0]
                uncut = self.train(f"uncut-{name}", text, ranks=2)
                self.cut_copy(f"cut-{name}", uncut, 6)
                run = self.train(f"cut-{name}", text, ranks=2)
                self.assertEqual(losses(run), losses(uncut))
                for file in ARRAYS:
                    self.assertEqual(read_bytes(newest(run), file), read_bytes(newest(uncut), file),
                                     file)

    def test_moments_kept_over_a_phase_change(self):
        """Cut before, at and after the change; recomputation does not show in any bit."""
        text = config(self.data, phase(4, sparse("masked", 0.5)), phase(4, "moments: KEEP"),
                      model=GPT2, checkpoint="every_steps: 2 keep_last: 0")
        uncut = self.train("kept", text)
        for step in (2, 4, 6):
            with self.subTest(step=step):
                self.cut_copy(f"kept-{step}", uncut, step)
                run = self.train(f"kept-{step}", text.replace(
                    "family: GPT2", "recompute: LAYER family: GPT2"))
                self.assertEqual(losses(run), losses(uncut))
                for file in ARRAYS:
                    self.assertEqual(read_bytes(newest(run), file), read_bytes(newest(uncut), file),
                                     file)

    def test_state_in_fewer_bytes(self):
        """Checkpoints hold plain numbers; codes and bf16 come back from them bit for bit."""
        rigl = ('sparsity { parameterisation: "masked" sparsity: 0.5 rule: "rigl" '
                'update_interval: 2 }')
        for form in ("state_dtype: BF16", "moments: EIGHT_BIT",
                     "state_dtype: BF16 moments: EIGHT_BIT"):
            text = config(self.data, phase(5, rigl), phase(3, "moments: KEEP"),
                          checkpoint="every_steps: 3 keep_last: 0", optimizer=form)
            with self.subTest(form=form):
                name = "compact-" + form.replace(": ", "-").replace(" ", "-")
                uncut = self.train(name, text, ranks=2)
                for step in (3, 6):
                    run = self.cut_copy(f"{name}-{step}", uncut, step)
                    self.train(f"{name}-{step}", text, ranks=2)
                    self.assertEqual(losses(run), losses(uncut))
                    for file in ARRAYS:
                        self.assertEqual(read_bytes(newest(run), file),
                                         read_bytes(newest(uncut), file), file)

    def test_per_layer_updates(self):
        """Clipping needs the norm of the step before the cut."""
        text = config(self.data, phase(6, sparse()), phase(3, "moments: KEEP"), sequences=2,
                      checkpoint="every_steps: 2 keep_last: 0",
                      optimizer="update: PER_LAYER clip_norm: 0.5 moments: EIGHT_BIT")
        for ranks in (1, 2):
            uncut = self.train(f"layers-{ranks}", text, ranks=ranks)
            self.assertGreater(min(m["grad_norm"] for m in metrics(uncut)[0]), 0.5)
            for step in (2, 6, 8):
                with self.subTest(ranks=ranks, step=step):
                    name = f"layers-{ranks}-{step}"
                    run = self.cut_copy(name, uncut, step)
                    self.train(name, text, ranks=ranks)
                    self.assertEqual(losses(run), losses(uncut))
                    for file in ARRAYS:
                        self.assertEqual(read_bytes(newest(run), file),
                                         read_bytes(newest(uncut), file), file)
        with open(os.path.join(uncut, "log.txt"), encoding="utf-8") as file:
            self.assertIn("clipping is approximate", file.read())

    def test_a_spoiled_step_is_left_out(self):
        """After one update of this size no gradient is finite: a run of per-layer updates goes back to its
        newest checkpoint, or to its start, and ends with what a run that skips those steps ends with."""
        for every in (0, 1):
            text = config(self.data, phase(4, "schedule { warmup_steps: 0 lr: 1e38 }"), sequences=2,
                          checkpoint=f"every_steps: {every}", optimizer="clip_norm: 0")
            skips = self.train(f"skips-{every}", text, ranks=2)
            run = self.train(f"spoiled-{every}", text.replace(
                "clip_norm: 0", "clip_norm: 0 update: PER_LAYER"), ranks=2)
            for r in (skips, run):
                self.assertEqual([line["step"] for line in metrics(r)[0]], [1, 2, 3, 4])
            self.assertEqual(metrics(skips)[0][-1]["skipped_steps"], 3)
            self.assertEqual(losses(run)[:1], losses(skips)[:1])
            with open(os.path.join(run, "log.txt"), encoding="utf-8") as file:
                self.assertEqual(file.read().count("to leave that step's update out"), 3)
            for file in ARRAYS:
                self.assertEqual(read_bytes(newest(run), file), read_bytes(newest(skips), file), file)

    def test_another_form_of_the_state_goes_on(self):
        for form in ("state_dtype: BF16", "moments: EIGHT_BIT"):
            with self.subTest(form=form):
                name = "reformed-" + form.split()[1]
                run = self.cut_copy(name, self.uncut_run(1), 6)
                self.train(name, self.two_phases.replace("optimizer { ", "optimizer { " + form))
                self.assert_close(losses(run), losses(self.uncut_run(1)), 2e-2, "loss")

    def stop(self, name, ranks, number, victim):
        """Starts a run, sends a signal to rank process `victim` after the third step, resumes."""
        path = self.write(name + ".textproto", self.two_phases)
        run = self.path(name)
        log = os.path.join(run, "metrics.jsonl")
        process = start("train", path, "--out", run, ranks=ranks)
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                self.fail("ended before the signal: " + "".join(process.communicate()))
            if os.path.exists(log) and b'"step":3,' in read_bytes(log):
                break
            time.sleep(0.002)
        pids = [process.pid] if ranks == 1 else ranks_below(process.pid)
        os.kill(pids[victim], number)
        output, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, STOPPED, output + errors)
        self.assertIn("stopped by a signal after step", errors)
        cut_at = int(checkpoints(run)[-1][len("step_"):])
        self.assertGreaterEqual(cut_at, 3)
        self.assertLess(cut_at, STEPS, "the signal came too late to test anything")
        self.assertEqual(len(losses(run)), cut_at)
        self.filigree("train", path, "--out", run, ranks=ranks, code=DONE)
        self.assert_same_run(run, self.uncut_run(ranks))

    def test_signals(self):
        for ranks, number, victim in ((1, signal.SIGUSR1, 0), (1, signal.SIGTERM, 0),
                                      (2, signal.SIGUSR1, 1), (2, signal.SIGTERM, 0)):
            with self.subTest(ranks=ranks, number=number):
                self.stop(f"stopped-{ranks}-{number}", ranks, number, victim)

    def test_a_complete_run_is_left_alone(self):
        run = self.uncut_run(1)
        before = {name: read_bytes(newest(run), name) for name in os.listdir(newest(run))
                  if os.path.isfile(os.path.join(newest(run), name))}
        lines = read_bytes(run, "metrics.jsonl")
        path = self.write("again.textproto", self.two_phases)
        result = self.filigree("train", path, "--out", run)
        self.assertIn("is complete", result.stdout + result.stderr)
        self.assertEqual(read_bytes(run, "metrics.jsonl"), lines)
        for name, content in before.items():
            self.assertEqual(read_bytes(newest(run), name), content)


if __name__ == "__main__":
    unittest.main()
