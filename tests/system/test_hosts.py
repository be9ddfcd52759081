"""Two and four hosts: training, resume and export across them, and every way a host can be lost.

The hosts are network namespaces (network_hosts.py). Where they cannot be made the test says so and
runs the fault cases on one host; in continuous integration (CI=true) it fails there instead.
"""
import os
import signal
import subprocess
import tempfile
import time
import unittest

import network_hosts
from filigree_testing import (BINARY, DONE, MPIRUN, STOPPED, SystemTest, config, environment, losses,
                              newest, phase, sparse)

TIMEOUT_SECONDS = 8   # of the watchdog, in these runs
END_SECONDS = 30      # from a fault to the end of the whole run
START_SECONDS = 90    # to the first steps, on a machine that is busy with other things
FAULT_STEPS = 1000000

WHY_NOT = network_hosts.missing()


class Run:
    """A run under way: the launcher's process, its output, the ranks' processes."""

    def __init__(self, words, run):
        self.run = run
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL,
                                        stdout=self.output, stderr=self.output)

    def text(self):
        return os.pread(self.output.fileno(), 1 << 20, 0).decode(errors="replace")

    def ranks(self):
        """Process ids of all ranks, wherever they run."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[0] == BINARY.encode() and self.run.encode() in words:
                found.append(int(entry))
        return sorted(pid for pid in found if network_hosts.name_of(pid))

    def last_step(self):
        path = os.path.join(self.run, "metrics.jsonl")
        return len(losses(self.run)) if os.path.exists(path) else 0

    def wait_for_steps(self, steps):
        """Until so many more steps are done."""
        goal = self.last_step() + steps
        deadline = time.monotonic() + START_SECONDS
        while self.last_step() < goal:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {steps} steps, status {self.process.poll()}:\n{self.text()}")
            time.sleep(0.1)

    def wait_for_end(self):
        """Seconds until the launcher and every rank had ended."""
        begin = time.monotonic()
        while self.process.poll() is None or self.ranks():
            if time.monotonic() - begin > END_SECONDS:
                raise AssertionError(f"after {END_SECONDS} s: launcher {self.process.poll()}, ranks "
                                     f"{self.ranks()}:\n{self.text()}")
            time.sleep(0.1)
        return time.monotonic() - begin

    def close(self):
        for pid in [self.process.pid, *self.ranks()]:
            network_hosts.kill(pid)
        self.process.wait()
        self.output.close()


class HostsTest(SystemTest):

    def start(self, words, run):
        started = Run(words, run)
        self.addCleanup(started.close)
        return started

    def config_file(self, name, steps):
        parallel = f"timeout_seconds: {TIMEOUT_SECONDS} bucket_megabytes: 0.02"
        return self.write(name + ".textproto", config(
            self.data, phase(steps, sparse()), checkpoint="every_steps: 2 keep_last: 2",
            schedule="shape: CONSTANT warmup_steps: 2", parallel=parallel))

    def words(self, path, run):
        return [BINARY, "train", path, "--out", run]

    def end_by(self, name, launch, faults):
        """Each fault ends the run in time, with its words; the start after it resumes."""
        run, path = self.path(name), self.config_file(name, FAULT_STEPS)
        for fault, expected in faults:
            with self.subTest(fault=fault.__name__):
                started = self.start(launch(self.words(path, run)), run)
                steps_before = started.last_step()
                started.wait_for_steps(4)
                if steps_before:
                    self.assertIn("going on from", started.text())
                mend = fault(started)
                try:
                    seconds = started.wait_for_end()
                finally:
                    mend()
                print(f"{name}: {fault.__name__}: ended after {seconds:.1f} s", flush=True)
                self.assertNotIn(started.process.returncode, (DONE, STOPPED), started.text())
                self.assertIn(expected, started.text())
        started = self.start(launch(self.words(path, run)), run)
        started.wait_for_steps(2)
        self.assertIn("going on from", started.text())
        os.kill(started.ranks()[-1], signal.SIGUSR1)
        started.wait_for_end()
        self.assertEqual(started.process.returncode, STOPPED, started.text())
        self.export(run)

    def export(self, run):
        self.filigree("export", run, "--out", run + "-hf")
        self.assertTrue(os.path.exists(os.path.join(run + "-hf", "model.safetensors")))

    @unittest.skipIf(WHY_NOT and os.environ.get("CI") != "true", f"on one host only: {WHY_NOT}")
    def test_several_hosts(self):
        self.assertEqual(WHY_NOT, "", "continuous integration must be able to make hosts")
        alone = self.path("alone")
        self.filigree("train", self.config_file("alone", 8), "--out", alone)
        for count, ranks_each in ((2, 2), (4, 1)):
            with self.subTest(hosts=count):
                hosts = network_hosts.Hosts(count)
                self.addCleanup(hosts.close)
                run = self.path(f"hosts-{count}")
                for steps in (4, 8):
                    path = self.config_file(f"hosts-{count}-{steps}", steps)
                    started = self.start(hosts.command(self.words(path, run), ranks_each), run)
                    started.process.wait(START_SECONDS)
                    self.assertEqual(started.process.returncode, DONE, started.text())
                self.assertIn("going on from", started.text())
                self.assert_close(losses(run), losses(alone), 1e-4, "loss")
                self.assertEqual(os.path.basename(newest(run)), "step_00000008")
                self.export(run)
                hosts.close()

    @unittest.skipIf(WHY_NOT and os.environ.get("CI") != "true", f"on one host only: {WHY_NOT}")
    def test_a_host_is_lost(self):
        self.assertEqual(WHY_NOT, "", "continuous integration must be able to make hosts")
        hosts = network_hosts.Hosts(2)
        self.addCleanup(hosts.close)
        lost = hosts.names[1]

        def nothing():
            pass

        def rank_killed(started):
            os.kill(hosts.pids(1, "filigree")[0], signal.SIGKILL)
            return nothing

        def daemon_killed(started):
            os.kill(hosts.pids(1, "orted")[0], signal.SIGKILL)
            return nothing

        def link_down(started):
            def link_up():
                hosts.set_link(1, up=True)
                hosts.wait_until_reached(1)

            hosts.set_link(1, up=False)
            return link_up

        self.end_by("lost", lambda words: hosts.command(words, 2),
                    [(rank_killed, lost), (daemon_killed, lost),
                     (link_down, f"no word from rank 2 on {lost}")])

    @unittest.skipUnless(WHY_NOT, "several hosts show the same")
    def test_faults_on_one_host(self):
        host = os.uname().nodename

        def nothing():
            pass

        def rank_killed(started):
            os.kill(started.ranks()[-1], signal.SIGKILL)
            return nothing

        def launcher_killed(started):
            started.process.kill()
            return nothing

        def rank_stopped(started):
            victim = started.ranks()[-1]
            os.kill(victim, signal.SIGSTOP)
            return nothing

        self.end_by("one", lambda words: [*MPIRUN, "2", *words],
                    [(rank_killed, host), (launcher_killed, ""),
                     (rank_stopped, "no word from rank 1 on")])


if __name__ == "__main__":
    unittest.main()
