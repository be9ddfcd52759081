"""Measurement records (see results_tables.py) as the benchmark scripts write them."""
import datetime
import json
import os
import shlex
import subprocess
import sys

REPOSITORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def output_of(*command):
    """What a command prints, or nothing where it does not work here."""
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class Failed(Exception):
    """A command that gave no result; its words and output."""


def result_of(command, environment, timeout):
    """The last JSON line that a command prints within `timeout` seconds; raises Failed."""
    try:
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True,
                              text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{shlex.join(command)}: no end within {timeout} s") from error
    results = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not results:
        raise Failed(f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(results[-1])


def current_commit():
    return output_of("git", "rev-parse", "--short", "HEAD")


def gpus():
    """Names of the GPUs that this machine shows."""
    return output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def add_options(parser):
    """Where records go and what they say of the run; each has a default."""
    parser.add_argument("--out", help="a file of records, which are added to those it has")
    parser.add_argument("--run-id", default="", help="default: date, time and commit")
    parser.add_argument("--commit", default="", help="default: git's")
    parser.add_argument("--device", default="", help="what the records say; default: nvidia-smi's")


def complete(options, device):
    """Fills in what add_options leaves open."""
    options.commit = options.commit or current_commit() or "unknown"
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M")
    options.run_id = options.run_id or f"{now}-{options.commit}"
    options.device = options.device or device


def _record(options, name, value, unit, ours_ms, peer_ms, samples, settings):
    return {"name": name, "value": value, "unit": unit, "ours_ms": ours_ms, "peer_ms": peer_ms,
            "samples": samples, "run_id": options.run_id, "settings": settings,
            "device": options.device, "date": datetime.date.today().isoformat(),
            "commit": options.commit,
            "command": shlex.join(["python3", os.path.relpath(sys.argv[0], REPOSITORY),
                                   *sys.argv[1:]])}


def ratio(options, name, ours_ms, peer_ms, samples, settings):
    """The record of a ratio: peer_ms / ours_ms."""
    return _record(options, name, peer_ms / ours_ms, "ratio", ours_ms, peer_ms, samples, settings)


def measurement(options, name, value, unit, ours_ms, samples, settings):
    """The record of a figure without a peer; `ours_ms` is the time of what it was measured on."""
    return _record(options, name, value, unit, ours_ms, None, samples, settings)


def append(path, records):
    """Adds records to a file."""
    old = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            old = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(old + records, file, indent=1)
