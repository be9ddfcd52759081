#!/usr/bin/env python3
"""A llama of 350 million shrunk to half during a run: tokens a second and memory at each size.

    python3 tests/bench/pruning_throughput.py --device "NVIDIA H100"      # about two minutes there

Trains on the quickstart's text (bash launch/quickstart.sh first, or --data); what a step costs does
not depend on what it learns. Reports, between one compaction and the next, the median tokens a
second beside the parameters stored, the operations a token and the peak memory (what a step of the
ramp does for pruning is in its time), runs of dense models of the first and the last size, as many
steps: their steps and the time end to end, and what the measurement of saliency adds to a step
(`filigree bench step`).

Writes pruning_throughput.json and pruning_throughput.md into --results.
"""
import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
SIZES = {"350m": "layers: 24 head_size: 64 vocab_size: 32000 "
                 "width: 1024 heads: 16 kv_heads: 16 feed_forward: 2736",
         "tiny": "layers: 2 head_size: 16 vocab_size: 2048 "  # a try of the command itself
                 "width: 64 heads: 4 kv_heads: 4 feed_forward: 96"}


def config(arguments, model, steps, pruning=""):
    seq_len = 1024 if arguments.size == "350m" else 64
    return f"""
name: "llama"
model {{ family: LLAMA {model} }}
data {{ prepared: "{arguments.data}" }}
batch {{ seq_len: {seq_len} tokens_per_step: {64 * seq_len} micro_batch_sequences: 16 }}
schedule {{ lr: 1e-4 }}
evaluation {{ every_steps: 0 tokens: {16 * seq_len} }}
checkpoint {{ every_steps: 0 keep_last: 1 }}
log {{ every_steps: 10 tensorboard: false }}
phase {{ steps: {steps} {pruning} }}
"""


def write(arguments, name, text):
    path = os.path.join(arguments.out, name + ".textproto")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def call(*words):
    result = subprocess.run([str(word) for word in words], cwd=ROOT, text=True, check=False,
                            capture_output=True)
    if result.returncode:
        raise SystemExit(f"{shlex.join(str(word) for word in words)}\n{result.stdout}\n"
                         f"{result.stderr}")
    return result.stdout


def saliency_of(arguments, text):
    """`bench step` of one rank: a step's time, and what saliency adds."""
    path = write(arguments, "saliency", text)
    return json.loads(call(arguments.binary, "bench", "step", path, "--steps", "10", "--json"))


def flops_token(arguments, name):
    """`plan`'s operations a token, forward and backward."""
    planned = json.loads(call(arguments.binary, "plan",
                              os.path.join(arguments.out, name + ".textproto"), "--json"))
    return planned["flops_method"] / planned["tokens"], planned["parameters_logical"]


def train(arguments, name, text):
    """Seconds of the whole command, and the lines of its metrics; a finished run is reused."""
    path, folder = write(arguments, name, text), os.path.join(arguments.out, name)
    seconds_file = os.path.join(folder, "seconds.txt")
    if not os.path.exists(seconds_file):
        begin = time.monotonic()
        call(*shlex.split(arguments.mpirun), arguments.binary, "train", path, "--out", folder,
             "--resume", "none")
        with open(seconds_file, "w", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - begin:.2f}\n")
    with open(seconds_file, encoding="utf-8") as file:
        seconds = float(file.read())
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return seconds, [json.loads(line) for line in file]


def steps_of(lines):
    """The training lines but the first ones, which try algorithms."""
    return [line for line in lines if "loss" in line and line["step"] > 3]


def dense_run(arguments, name, model):
    """Of a run of that model from its start to its end."""
    seconds, lines = train(arguments, name, config(arguments, model, arguments.steps))
    steps = steps_of(lines)
    rate, _ = flops_token(arguments, name)
    return {"flops_token": rate, "step_ms": statistics.median(line["step_ms"] for line in steps),
            "tokens_per_second": statistics.median(line["tokens_per_second"] for line in steps),
            "memory_bytes": max(line["memory_bytes"] for line in steps),
            "end_to_end_s": seconds, "in_steps_s": in_steps(lines)}


def in_steps(lines):
    return 1e-3 * sum(line["step_ms"] for line in lines if "loss" in line)


def compaction_seconds(folder):
    with open(os.path.join(folder, "log.txt"), encoding="utf-8") as file:
        return [float(seconds) for seconds in
                re.findall(r"compacted after step \d+ in ([0-9.]+) s", file.read())]


def final_model(folder):
    newest = sorted(os.listdir(os.path.join(folder, "checkpoints")))[-1]
    with open(os.path.join(folder, "checkpoints", newest, "manifest.json"),
              encoding="utf-8") as file:
        return json.load(file)["model"]


def stages(lines, stored, flops_token):
    """Between compactions: stored parameters, operations a token, steps, median rates of steps
    without and with removals, steps' peak memory."""
    def new(size):
        return {"stored": size, "rates": [], "removal_ms": [], "memory": 0, "work": None}
    found = [new(stored)]
    removed = {line["step"] for line in lines if line.get("topology") == "pruning"}
    steps = steps_of(lines)
    for line in lines:
        if line.get("topology") == "compaction":
            found.append(new(line["stored_values"]))
        elif line in steps:
            stage = found[-1]
            if line["step"] in removed:
                stage["removal_ms"].append(line["step_ms"])
            else:
                stage["rates"].append(line["tokens_per_second"])
            # Operations a step over the machine's peak, which is the same for all lines.
            stage["work"] = line["mfu_dense_equivalent"] / line["tokens_per_second"]
            stage["memory"] = max(stage["memory"], line["memory_bytes"])
    return [{"stored": s["stored"],
             "flops_token": s["work"] and flops_token * s["work"] / found[0]["work"],
             "steps": len(s["rates"]) + len(s["removal_ms"]),
             "tokens_per_second": statistics.median(s["rates"]) if s["rates"] else None,
             "step_ms_with_removal": statistics.median(s["removal_ms"]) if s["removal_ms"] else None,
             "memory_bytes": s["memory"]} for s in found]


def records_of(arguments, name, ms, settings):
    return {"name": f"pruning_throughput/{name}", "ours_ms": ms, "peer_ms": None, "samples": 1,
            "run_id": f"steps{arguments.steps}", "settings": settings, "device": arguments.device,
            "date": datetime.date.today().isoformat(), "commit": arguments.commit,
            "command": f"python3 tests/bench/pruning_throughput.py --steps {arguments.steps} "
                       f"--target {arguments.target} --interval {arguments.interval}"}


def table(found, shrink, dense, saliency, arguments):
    """Generated from what was measured alone."""
    first = found[0]
    lines = [
        "# A llama of 350M shrunk to half during a run", "",
        f"{arguments.device}, one card, {datetime.date.today().isoformat()}, commit "
        f"{arguments.commit}; {shrink['tokens_per_step']:,} tokens a step, {arguments.steps} steps, "
        f"removals every {arguments.interval} steps from 15 to 85 % of them, sizes multiples of 128. "
        f"`python3 tests/bench/pruning_throughput.py --steps {arguments.steps} --target "
        f"{arguments.target} --interval {arguments.interval}` writes this file.", "",
        "| stored parameters | share | FLOPs a token | of the first | steps | tokens/s "
        "| over the first | step with removals, ms | peak memory, GB |",
        "|---|---|---|---|---|---|---|---|---|"]
    for stage in found:
        rate, removal = stage["tokens_per_second"], stage["step_ms_with_removal"]
        lines.append(
            f"| {stage['stored'] / 1e6:.1f}M | {stage['stored'] / first['stored']:.3f} "
            f"| {stage['flops_token'] or 0:.4g} "
            f"| {(stage['flops_token'] or 0) / first['flops_token']:.3f} "
            f"| {stage['steps']} | {rate and round(rate) or '-'} "
            f"| {rate and format(rate / first['tokens_per_second'], '.2f') or '-'} "
            f"| {removal and format(removal, '.1f') or '-'} | {stage['memory_bytes'] / 1e9:.2f} |")
    lines += ["", "| run of as many steps | FLOPs a token | step, ms | tokens/s | memory, GB "
              "| in steps, s | end to end, s |", "|---|---|---|---|---|---|---|"]
    for name, run in dense.items():
        lines.append(f"| dense, {name} size | {run['flops_token']:.4g} | {run['step_ms']:.1f} "
                     f"| {run['tokens_per_second']:.0f} | {run['memory_bytes'] / 1e9:.2f} "
                     f"| {run['in_steps_s']:.1f} | {run['end_to_end_s']:.1f} |")
    lines.append(f"| shrinking | | | | | {shrink['in_steps_s']:.1f} "
                 f"| {shrink['end_to_end_s']:.1f} |")
    share = saliency["saliency_ms"] / saliency["step_ms"]
    lines += ["", "End to end is the whole command: start, data, evaluation and checkpoint are in it. "
              f"The shrinking run's {len(shrink['compactions_s'])} compactions took "
              f"{sum(shrink['compactions_s']):.1f} s of it.", "",
              f"Measuring saliency (every step of the ramp): the step takes "
              f"{saliency['step_ms']:.2f} ms without and "
              f"{saliency['step_ms'] + saliency['saliency_ms']:.2f} ms with it, {share:.2%} more."]
    return "\n".join(lines) + "\n"


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.path.join(ROOT, "runs", "quickstart", "data"))
    parser.add_argument("--binary", default=os.path.join(ROOT, "build", "filigree"))
    parser.add_argument("--out", default=os.path.join(ROOT, "runs", "pruning_throughput"))
    parser.add_argument("--results", default=os.path.join(ROOT, "docs", "results"))
    parser.add_argument("--mpirun", default="", help="before `train`, such as \"mpirun -np 2\"")
    parser.add_argument("--device", default=f"CPU ({platform.machine()})",
                        help="the records' name of what the runs ran on")
    parser.add_argument("--commit", default="", help="the records' (default: git says it)")
    parser.add_argument("--size", choices=sorted(SIZES), default="350m")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--interval", type=int, default=10, help="steps between removals")
    parser.add_argument("--target", type=int, default=184000000, help="parameters at the end")
    arguments = parser.parse_args()
    for field in ("data", "binary", "out", "results"):
        setattr(arguments, field, os.path.abspath(getattr(arguments, field)))
    if not arguments.commit:
        arguments.commit = call("git", "rev-parse", "--short", "HEAD").strip()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.results, exist_ok=True)
    return arguments


def main():
    arguments = parse()
    alignment = 128 if arguments.size == "350m" else 8
    pruning = (f"pruning {{ target_parameters: {arguments.target} begin: 0.15 end: 0.85 "
               f"interval: {arguments.interval} smoothing: 0.7 compact_share: 0.1 feed_forward {{ alignment: "
               f"{alignment} }} stem {{ alignment: {alignment} }} }}")
    shape = SIZES[arguments.size]
    text = config(arguments, shape, arguments.steps, pruning)
    seconds, lines = train(arguments, "shrink", text)
    shrink = {"end_to_end_s": seconds, "in_steps_s": in_steps(lines),
              "compactions_s": compaction_seconds(os.path.join(arguments.out, "shrink")),
              "final_model": final_model(os.path.join(arguments.out, "shrink"))}
    last = " ".join(f"{field}: {shrink['final_model'][field]}" for field in (
        "layers", "head_size", "vocab_size", "width", "heads", "kv_heads", "feed_forward"))
    dense = {name: dense_run(arguments, f"dense_{name}", model)
             for name, model in (("first", shape), ("last", last))}
    flops, stored = flops_token(arguments, "dense_first")
    found = stages(lines, stored, flops)
    for result in (*found, shrink, dense):
        print(json.dumps(result), flush=True)
    saliency = saliency_of(arguments, text)
    shrink["tokens_per_step"] = saliency["tokens_per_step"]
    records = [records_of(arguments, "saliency", saliency["saliency_ms"],
                          {"step_ms": saliency["step_ms"]}),
               records_of(arguments, "shrinking_run", 1e3 * seconds, shrink)]
    for name, run in dense.items():
        records.append(records_of(arguments, f"dense_{name}_size", run["step_ms"], run))
    for number, stage in enumerate(found):
        rate = stage["tokens_per_second"]
        records.append(records_of(arguments, f"stage_{number}",
                                  rate and 1e3 * shrink["tokens_per_step"] / rate, stage))
    text = table(found, shrink, dense, saliency, arguments)
    for name, content in (("json", json.dumps(records, indent=1) + "\n"), ("md", text)):
        with open(os.path.join(arguments.results, "pruning_throughput." + name), "w",
                  encoding="utf-8") as file:
            file.write(content)
    print(text)


if __name__ == "__main__":
    main()
