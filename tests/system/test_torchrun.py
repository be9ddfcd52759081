"""Ranks without MPI: processes that have what torchrun sets in their environment."""
import os
import signal
import socket
import subprocess
import time
import unittest

from filigree_testing import (BAD_INPUT, BINARY, DONE, FAULT, STOPPED, SystemTest, checkpoints,
                              config, environment, losses, metrics, newest, phase, read_bytes,
                              sparse)

STEPS = 6


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    """Whether some process of this machine waits for connections to the port."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="utf-8") as file:
                sockets = [line.split() for line in list(file)[1:]]
        except FileNotFoundError:
            continue
        if any(s[1].endswith(f":{port:04X}") and s[3] == "0A" for s in sockets):
            return True
    return False


class TorchrunTest(SystemTest):

    def start_rank(self, words, rank, ranks, port):
        variables = dict(environment(), RANK=str(rank), WORLD_SIZE=str(ranks),
                         LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        return subprocess.Popen([BINARY, *words], env=variables, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def start(self, words, ranks):
        """A process for each rank, as torchrun starts them."""
        port = free_port()
        return [self.start_rank(words, rank, ranks, port) for rank in range(ranks)]

    def finish(self, processes, codes):
        texts = ["".join(process.communicate(timeout=120)) for process in processes]
        self.assertEqual([process.returncode for process in processes], codes, "\n".join(texts))
        return texts

    def configuration(self, zero_stage, steps=STEPS, parallel=""):
        return config(self.data, phase(steps, sparse()), sequences=7,
                      parallel=f"zero_stage: {zero_stage} bucket_megabytes: 0.02 {parallel}",
                      checkpoint="every_steps: 3")

    def test_trains_as_under_mpirun(self):
        alone = self.train("alone", self.configuration(0))
        for ranks in (1, 2, 3, 4):
            for zero_stage in (0, 1):
                with self.subTest(ranks=ranks, zero_stage=zero_stage):
                    name = f"ranks-{ranks}-{zero_stage}"
                    path = self.write(name + ".textproto", self.configuration(zero_stage))
                    run = self.path(name)
                    self.finish(self.start(["train", path, "--out", run], ranks), [DONE] * ranks)
                    self.assert_close(losses(run), losses(alone), 1e-4, "loss")
                    self.assertEqual(read_bytes(newest(run), "layouts.safetensors"),
                                     read_bytes(newest(alone), "layouts.safetensors"))

    def test_exchanges_what_mpirun_does(self):
        runs = [self.train("mpi", self.configuration(1), ranks=2), self.path("tcp")]
        path = self.write("tcp.textproto", self.configuration(1))
        self.finish(self.start(["train", path, "--out", runs[1]], 2), [DONE] * 2)
        sent = [[line["exchanged_bytes"] for line in metrics(run)[0]] for run in runs]
        self.assertGreater(sent[0][0], 0)
        self.assertEqual(sent[0], sent[1])
        # Two addends have one order.
        self.assertEqual(losses(runs[0]), losses(runs[1]))

    def test_one_message_on_bad_input(self):
        path = self.write("bad.textproto", self.configuration(3))
        texts = self.finish(self.start(["train", path, "--out", self.path("bad")], 2),
                            [BAD_INPUT] * 2)
        self.assertIn("zero_stage", texts[0])
        self.assertEqual(texts[1], "")

    def test_a_signal_while_ranks_start_stops_the_run_before_its_first_step(self):
        path = self.write("early.textproto", self.configuration(1))
        uncut, words = self.path("uncut"), ["train", path, "--out"]
        self.finish(self.start([*words, uncut], 2), [DONE] * 2)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with self.subTest(signal=number.name):
                run, port = self.path(number.name), free_port()
                first = self.start_rank([*words, run], 0, 2, port)
                deadline = time.monotonic() + 60
                while not listens(port):
                    self.assertIsNone(first.poll())
                    self.assertLess(time.monotonic(), deadline)
                first.send_signal(number)  # while it waits for the other
                texts = self.finish([first, self.start_rank([*words, run], 1, 2, port)],
                                    [STOPPED] * 2)
                self.assertIn("stopped by a signal after step 0", texts[0])
                self.assertEqual(checkpoints(run), ["step_00000000"])
                self.finish(self.start([*words, run], 2), [DONE] * 2)
                self.assertEqual(losses(run), losses(uncut))
                for file in ("model.safetensors", "optimizer.safetensors"):
                    self.assertEqual(read_bytes(newest(run), file),
                                     read_bytes(newest(uncut), file), file)
                self.assertEqual(metrics(run)[1], metrics(uncut)[1])

    def test_a_killed_rank_ends_the_others(self):
        path = self.write("killed.textproto",
                          self.configuration(1, steps=1000000, parallel="timeout_seconds: 10"))
        run = self.path("killed")
        processes = self.start(["train", path, "--out", run], 3)
        while not os.path.exists(os.path.join(run, "metrics.jsonl")) or not losses(run):
            self.assertIsNone(processes[0].poll(), "ended before the signal")
        processes[2].send_signal(signal.SIGKILL)
        texts = self.finish(processes, [FAULT, FAULT, -signal.SIGKILL])
        self.assertIn(f"rank 2 on {os.uname().nodename}", texts[0])


if __name__ == "__main__":
    unittest.main()
