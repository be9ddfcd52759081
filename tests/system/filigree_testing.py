"""What the end-to-end tests share: the binary, text to train on, and readers of what it wrote.

ctest sets FILIGREE_BINARY, FILIGREE_MPIRUN (the launcher and its flags, up to the number of ranks)
and FILIGREE_SOURCE_DIR. To run one file by hand:

    FILIGREE_BINARY=build/filigree python3 tests/system/test_resume.py -v
"""
import hashlib
import json
import math
import os
import random
import shlex
import shutil
import struct
import subprocess
import tempfile
import unittest

SOURCE_DIR = os.environ.get(
    "FILIGREE_SOURCE_DIR",
    os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
BINARY = os.path.abspath(
    os.environ.get("FILIGREE_BINARY", os.path.join(SOURCE_DIR, "build", "filigree")))
MPIRUN = shlex.split(
    os.environ.get("FILIGREE_MPIRUN", "mpirun --oversubscribe --bind-to none -np"))

DONE, FAULT, BAD_INPUT, STOPPED = 0, 1, 2, 143

_ENVIRONMENT = dict(
    os.environ,
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",  # these are tests of the CPU build's promises, on any machine
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    OMPI_MCA_btl_vader_single_copy_mechanism="none",
    OMPI_MCA_mpi_yield_when_idle="1",
)


def environment():
    """What the binary's processes are given."""
    return dict(_ENVIRONMENT)


def command(*arguments, ranks=1):
    """The words of one call of the binary; `ranks` above 1 go through mpirun."""
    words = [BINARY, *map(str, arguments)]
    return words if ranks == 1 else [*MPIRUN, str(ranks), *words]


def start(*arguments, ranks=1, cwd=None):
    return subprocess.Popen(
        command(*arguments, ranks=ranks), env=_ENVIRONMENT, cwd=cwd, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def call(*arguments, ranks=1, cwd=None, timeout=300):
    return subprocess.run(
        command(*arguments, ranks=ranks), env=_ENVIRONMENT, cwd=cwd, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)


class SystemTest(unittest.TestCase):
    """A test class with a directory of its own and tiny prepared data in it."""
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.work = tempfile.mkdtemp(prefix="filigree-system-")
        cls.addClassCleanup(shutil.rmtree, cls.work, ignore_errors=True)
        cls.text = cls.path("text")
        write_text(cls.text)
        cls.data = cls.path("data")
        result = call("prepare", "--input", cls.text, "--tokenizer", "byte",
                      "--val-fraction", "0.1", "--out", cls.data)
        if result.returncode != DONE:
            raise AssertionError(result.stdout + result.stderr)

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.work, *parts)

    def filigree(self, *arguments, ranks=1, code=DONE):
        """Calls the binary, demands its exit code, returns the completed process."""
        result = call(*arguments, ranks=ranks)
        self.assertEqual(
            result.returncode, code,
            f"{' '.join(command(*arguments, ranks=ranks))}\n{result.stdout}\n{result.stderr}")
        return result

    def write(self, name, text):
        path = self.path(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def train(self, name, config, *arguments, ranks=1, code=DONE):
        """Trains `config` (text) into the run `name`; returns the run's path."""
        path = self.write(name + ".textproto", config)
        self.filigree("train", path, "--out", self.path(name), *arguments, ranks=ranks, code=code)
        return self.path(name)

    def cut_copy(self, name, uncut, step):
        """The uncut run without the checkpoints after `step`."""
        run = self.path(name)
        shutil.copytree(uncut, run)
        for checkpoint in checkpoints(run):
            if int(checkpoint[len("step_"):]) > step:
                shutil.rmtree(os.path.join(run, "checkpoints", checkpoint))
        return run

    def assert_close(self, found, expected, relative, what):
        self.assertEqual(len(found), len(expected), what)
        for i, (a, b) in enumerate(zip(found, expected)):
            self.assertTrue(math.isclose(a, b, rel_tol=relative, abs_tol=relative),
                            f"{what}[{i}]: {a} against {b}")


class RefusalTest(SystemTest):
    """Bad input: exit code 2, one message that names the place and the mend, nothing written.

    Has a good configuration (`good`, in good.textproto), a run of it and its fp32 export."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.good = config(cls.data, phase(4, sparse()), checkpoint="every_steps: 2")
        cls.run_dir = cls.path("run")
        path = cls.path("good.textproto")
        with open(path, "w", encoding="utf-8") as file:
            file.write(cls.good)
        result = call("train", path, "--out", cls.run_dir)
        if result.returncode != 0:
            raise AssertionError(result.stdout + result.stderr)
        cls.hf = cls.path("hf")
        result = call("export", cls.run_dir, "--out", cls.hf, "--dtype", "f32")
        if result.returncode != 0:
            raise AssertionError(result.stdout + result.stderr)

    def refused(self, *arguments, says=(), ranks=1):
        """The call ends with exit code 2 and one message that has all of `says`; no file changed."""
        before = snapshot(self.work)
        result = call(*arguments, ranks=ranks)
        words = " ".join(command(*arguments, ranks=ranks))
        told = f"{words}\n{result.stdout}\n{result.stderr}"
        self.assertEqual(result.returncode, BAD_INPUT, told)
        after = snapshot(self.work)
        self.assertEqual(before, after, "files were written or changed: " + told)
        messages = [line for line in result.stderr.splitlines() if line.startswith("filigree: ")]
        self.assertEqual(len(messages), 1, told)
        # Nothing but the message: mpirun alone adds a notice of its own.
        if ranks == 1:
            self.assertTrue(result.stderr.startswith("filigree: "), told)
            self.assertEqual(result.stdout, "", told)
        for text in says:
            self.assertIn(text, result.stderr, told)
        return result.stderr


def write_text(directory, documents=40, seed=7):
    """Sentences over a small vocabulary: something that a model of a few thousand weights learns."""
    os.makedirs(directory)
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghijklmno") for _ in range(rng.randint(2, 7)))
             for _ in range(60)]
    for i in range(documents):
        lines = [" ".join(rng.choices(words, k=rng.randint(4, 12))) + "."
                 for _ in range(rng.randint(10, 30))]
        with open(os.path.join(directory, f"{i:03}.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


LLAMA = "family: LLAMA layers: 2 width: 48 heads: 6 kv_heads: 3 feed_forward: 100"
GPT2 = "family: GPT2 layers: 2 width: 48 heads: 4 max_positions: 32"


def sparse(parameterisation="block_sparse", sparsity=0.75, block=16):
    blocks = f" block_out: {block} block_in: {block}" if parameterisation == "block_sparse" else ""
    return (f'sparsity {{ parameterisation: "{parameterisation}" sparsity: {sparsity}'
            f"{blocks} }}")


def phase(steps, *fields):
    return f"phase {{ steps: {steps} {' '.join(fields)} }}"


def config(data, *phases, model=LLAMA, sequences=6, schedule="warmup_steps: 2", checkpoint="",
           parallel="", optimizer=""):
    """A run of tiny steps: 32 positions a sequence, two sequences a micro-batch."""
    return f"""
model {{ {model} }}
data {{ prepared: "{data}" }}
batch {{ seq_len: 32 tokens_per_step: {32 * sequences} micro_batch_sequences: 2 }}
optimizer {{ {optimizer} }}
schedule {{ lr: 1e-2 {schedule} }}
evaluation {{ every_steps: 0 tokens: 2048 }}
parallel {{ {parallel} }}
checkpoint {{ {checkpoint or "every_steps: 0"} }}
log {{ every_steps: 1 peak_tflops: 0.01 tensorboard: false }}
{chr(10).join(phases)}
"""


def metrics(run):
    """The training lines and the evaluation lines of a run."""
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return ([line for line in lines if "loss" in line],
            [line for line in lines if "val_loss" in line])


def losses(run):
    return [line["loss"] for line in metrics(run)[0]]


def checkpoints(run):
    """Names of the complete checkpoints, oldest first."""
    return sorted(name for name in os.listdir(os.path.join(run, "checkpoints"))
                  if name.startswith("step_"))


def newest(run):
    return os.path.join(run, "checkpoints", checkpoints(run)[-1])


def rewrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def read_bytes(*parts):
    with open(os.path.join(*parts), "rb") as file:
        return file.read()


class Tensor:
    """One tensor of a safetensors file: dtype and shape as in its header, data as bytes."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, shape, data

    def values(self):
        """All elements, row-major."""
        if self.dtype == "BF16":
            halves = struct.unpack(f"<{len(self.data) // 2}H", self.data)
            return list(struct.unpack(f"<{len(halves)}f",
                                      struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves))))
        code = {"F32": "f", "I32": "i", "I64": "q", "U8": "B"}[self.dtype]
        return list(struct.unpack(f"<{len(self.data) // struct.calcsize('<' + code)}{code}",
                                  self.data))


_SIZES = {"F32": 4, "BF16": 2, "I32": 4, "I64": 8, "U8": 1}


def read_safetensors(*parts):
    """Reads a file by the format's specification and checks it: {name: Tensor}, metadata."""
    content = read_bytes(*parts)
    (header_size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + header_size])
    metadata = header.pop("__metadata__", {})
    tensors, end = {}, 0
    body = content[8 + header_size:]
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        size = _SIZES[entry["dtype"]] * math.prod(entry["shape"])
        if begin != end or stop - begin != size:
            raise AssertionError(f"{name}: a hole, an overlap or a wrong size at {begin}..{stop}")
        tensors[name] = Tensor(entry["dtype"], entry["shape"], body[begin:stop])
        end = stop
    if end != len(body):
        raise AssertionError(f"{len(body) - end} bytes after the last tensor")
    return tensors, metadata


def snapshot(directory):
    """Every path below a directory with a digest of its content."""
    found = {}
    for root, folders, files in os.walk(directory):
        for name in folders:
            found[os.path.relpath(os.path.join(root, name), directory)] = "directory"
        for name in files:
            path = os.path.join(root, name)
            found[os.path.relpath(path, directory)] = hashlib.sha256(read_bytes(path)).hexdigest()
    return found
