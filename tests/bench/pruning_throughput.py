#!/usr/bin/env python3
"""A llama of 350 million shrunk to half during a run: tokens a second and memory at each size.

    python3 tests/bench/pruning_throughput.py [--out runs/pruning_throughput] [--json FILE]

Trains on the quickstart's text (bash launch/quickstart.sh first, or --data), read as bytes: what a
step costs does not depend on what it learns. Prints, between one compaction and the next, the
median tokens a second beside the parameters stored, the operations a token and the memory in use,
and dense models of the first and the last size by `filigree bench step` for comparison.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
HEAD_SIZE = 64


def config(data, model, steps, pruning=""):
    return f"""
model {{ family: LLAMA layers: 24 vocab_size: 32000 head_size: {HEAD_SIZE} {model} }}
data {{ prepared: "{data}" }}
batch {{ seq_len: 1024 tokens_per_step: 65536 micro_batch_sequences: 16 }}
schedule {{ lr: 1e-4 }}
evaluation {{ every_steps: 0 tokens: 16384 }}
checkpoint {{ every_steps: 0 keep_last: 1 }}
log {{ every_steps: 10 tensorboard: false }}
phase {{ steps: {steps} {pruning} }}
"""


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def call(*words):
    result = subprocess.run([str(word) for word in words], cwd=ROOT, text=True, check=False,
                            capture_output=True)
    if result.returncode:
        raise SystemExit(f"{words}\n{result.stdout}\n{result.stderr}")
    return result.stdout


def stages(run):
    """[(stored parameters, memory in use, [tokens a second])] between compactions."""
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    found = [[None, None, []]]
    for line in lines:
        if line.get("topology") == "compaction":
            found.append([line["stored_values"], line["memory_bytes"], []])
        elif line.get("topology") == "pruning" and found[-1][0] is None:
            found[-1][:2] = line["stored_values"], line["memory_bytes"]
        elif "loss" in line:
            found[-1][2].append(line["tokens_per_second"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.path.join(ROOT, "runs", "quickstart", "data"))
    parser.add_argument("--binary", default=os.path.join(ROOT, "build", "filigree"))
    parser.add_argument("--out", default=os.path.join(ROOT, "runs", "pruning_throughput"))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--target", type=int, default=184000000)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    pruning = (f"pruning {{ target_parameters: {arguments.target} begin: 0.15 end: 0.85 "
               "smoothing: 0.7 feed_forward { alignment: 128 } stem { alignment: 128 } }")
    large = "width: 1024 heads: 16 feed_forward: 2736"
    path = write(os.path.join(arguments.out, "shrink.textproto"),
                 config(arguments.data, large, arguments.steps, pruning))
    run = os.path.join(arguments.out, "shrink")
    begin = time.monotonic()
    call(arguments.binary, "train", path, "--out", run, "--resume", "none")
    seconds = time.monotonic() - begin
    newest = sorted(name for name in os.listdir(os.path.join(run, "checkpoints")))[-1]
    with open(os.path.join(run, "checkpoints", newest, "manifest.json"), encoding="utf-8") as file:
        model = json.load(file)["model"]
    small = (f"width: {model['width']} heads: {model['heads']} kv_heads: {model['kv_heads']} "
             f"feed_forward: {model['feed_forward']}")
    records = {"seconds": seconds, "final_model": model, "stages": [], "dense": {}}
    for stored, memory, rates in stages(run):
        rate = statistics.median(rates[2:]) if len(rates) > 4 else None
        records["stages"].append({"stored": stored, "memory_bytes": memory, "steps": len(rates),
                                  "tokens_per_second": rate})
        print(f"{(stored or 0) / 1e6:8.1f}M stored  {len(rates):4d} steps  "
              f"{(rate or 0):10.0f} tokens/s  {(memory or 0) / 2**30:6.2f} GiB")
    for name, shape in (("large", large), ("small", small)):
        path = write(os.path.join(arguments.out, name + ".textproto"),
                     config(arguments.data, shape, 30))
        result = json.loads(call(arguments.binary, "bench", "step", path, "--json"))
        records["dense"][name] = result
        print(f"dense {name}: {json.dumps(result)[:300]}")
    print(f"the whole run took {seconds:.0f} s")
    if arguments.json:
        write(arguments.json, json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
