#!/usr/bin/env python3
"""SLTrain at 7B on one card: memory of the device in use, and tokens a second at the largest batch.

    python3 tests/bench/sltrain_7b.py --out docs/results/sltrain_7b_h100.json
    python3 tests/bench/sltrain_7b.py --points accumulation1 --configs sltrain_7b_blocks

Runs `filigree bench step` on configs/sltrain_7b.textproto (8-bit moments, pure bf16, per-layer updates) in
steps of

    accumulation1      one micro-batch of 1 x 256 tokens, as the published 18.3 GB were measured
    accumulation8      eight of them
    largest            one micro-batch of as many rows as `filigree plan` finds room for in --gigabytes
    largest_recompute  the same, each layer's activations computed again in backward

A run draws billions of initial values: about a minute each. Memory is the peak of what nvidia-smi shows
from the start of the program to its end: context, libraries and initialisation included, and whoever
else is on the card. Writes records (see results_tables.py).
"""
import argparse
import json
import os
import shlex
import subprocess

import bench_records

SEQ_LEN = 256
PUBLISHED_GB = 18.3  # of one A100 at accumulation 1 (figures/sltrain_result_memory.png of its repository)
RECOMPUTE = "model { recompute: LAYER }"
POINTS = ("accumulation1", "accumulation8", "largest", "largest_recompute")


def batch(rows, micro_batch):
    return (f"batch {{ tokens_per_step: {rows * SEQ_LEN} micro_batch_sequences: {micro_batch} }}")


def command(options, words, config, overrides):
    line = [options.binary, *words, os.path.join("configs", config + ".textproto"), "--json"]
    for text in overrides:
        line += ["--override", text]
    return line


def planned_bytes(options, config, overrides):
    done = subprocess.run(command(options, ["plan"], config, overrides), check=True, text=True,
                          stdout=subprocess.PIPE, cwd=bench_records.REPOSITORY)
    return json.loads(done.stdout)["memory_bytes"]["total"]


def largest_rows(options, config, extra):
    """Rows of one micro-batch that fit: memory is linear in them, so two plans say how many."""
    def needed(rows):
        return planned_bytes(options, config, [batch(rows, rows), *extra])

    one, some = needed(1), needed(17)
    limit = options.gigabytes * 1e9
    if one > limit:
        raise SystemExit(f"{config}: a micro-batch of one row needs {one / 1e9:.2f} GB, beyond --gigabytes")
    rows = int(1 + 16 * (limit - one) / (some - one))
    while rows > 1 and needed(rows) > limit:
        rows -= 1
    return rows


def run_watched(line):
    """Output of a program that ends well, and the largest memory in use that nvidia-smi saw, in bytes."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # the one that the run takes
    watch = subprocess.Popen(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits",
                              "--loop-ms=100", "--id=" + gpu], stdout=subprocess.PIPE, text=True)
    try:
        done = subprocess.run(line, check=False, text=True, capture_output=True,
                              cwd=bench_records.REPOSITORY)
    finally:
        watch.terminate()
    seen = [int(value) for value in watch.communicate()[0].split()]
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(line)}\n{done.stderr}")
    return done.stdout, max(seen) * 2**20


def measure(options, config, point):
    extra = [RECOMPUTE] if point == "largest_recompute" else []
    if point.startswith("accumulation"):
        rows, micro_batch = int(point[len("accumulation"):]), 1
    else:
        rows = micro_batch = largest_rows(options, config, extra)
    overrides = [batch(rows, micro_batch), *extra]
    planned = planned_bytes(options, config, overrides)
    line = command(options, ["bench", "step", "--warmup", "2", "--steps", str(options.steps)], config,
                   overrides)
    output, peak = run_watched(line)
    result = json.loads(output.splitlines()[-1])
    settings = {"tokens_per_step": result["tokens_per_step"], "micro_batch_sequences": micro_batch,
                "tokens_per_second": round(result["tokens_per_second"]),
                "mfu_executed": round(result["mfu_executed"], 4),
                "planned_gb": round(planned / 1e9, 2),
                "own_peak_gb": round(result["memory_peak_bytes"] / 1e9, 2),
                "in_use_between_steps_gb": round(result["device_bytes_in_use"] / 1e9, 2),
                "published_gb": PUBLISHED_GB if point == "accumulation1" else None,
                "first_loss": round(result["first_loss"], 3),
                "last_loss": round(result["last_loss"], 3), "bench": shlex.join(line[1:])}
    print(f"{config} {point}: {rows} rows in micro-batches of {micro_batch}: {peak / 1e9:.2f} GB at most "
          f"in use (planned {planned / 1e9:.2f}), {result['step_ms']:.1f} ms, "
          f"{result['tokens_per_second']:.0f} tokens/s, loss {result['first_loss']:.2f} -> "
          f"{result['last_loss']:.2f}", flush=True)
    return bench_records.measurement(options, f"{config}/{point}/device_memory_peak",
                                     peak / 1e9, "GB", result["step_ms"], len(result["samples"]),
                                     {k: v for k, v in settings.items() if v is not None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="accumulation1,accumulation8,largest")
    parser.add_argument("--configs", default="sltrain_7b")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=80, help="what the largest batch may need")
    bench_records.add_options(parser)
    options = parser.parse_args()
    points = options.points.split(",")
    unknown = [point for point in points if point not in POINTS]
    if unknown:
        parser.error(f"--points: no {', '.join(unknown)}; there are {', '.join(POINTS)}")
    options.binary = os.path.abspath(options.binary)
    bench_records.complete(options, (bench_records.gpus() or ["unknown"])[0])
    for config in options.configs.split(","):
        for point in points:
            record = measure(options, config, point)
            if options.out:  # at once: a run takes a minute and the next may not end
                bench_records.append(options.out, [record])


if __name__ == "__main__":
    main()
