#!/usr/bin/env python3
"""A llama of 350 million shrunk to half during a run: tokens a second and memory at each size.

    python3 tests/bench/pruning_throughput.py --device "NVIDIA H100"      # about four minutes there

Trains on the quickstart's text (bash launch/quickstart.sh first, or --data); what a step costs does
not depend on what it learns. Reports, between one compaction and the next, the median tokens a
second beside the parameters stored, the operations a token and the peak memory (what a step of the
ramp does for pruning is in its time), the step with and without the measurement of saliency
(`filigree bench step`), and dense models of the first and the last size: their steps, and the time
that the same number of steps takes end to end.

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


def bench(arguments, name, text):
    """`bench step` of one rank, and `plan`'s operations a token, forward and backward."""
    path = write(arguments, name, text)
    result = json.loads(call(arguments.binary, "bench", "step", path, "--steps", "10", "--json"))
    planned = json.loads(call(arguments.binary, "plan", path, "--json"))
    result["flops_token"] = planned["flops_method"] / planned["tokens"]
    return result


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
    for line in lines:
        if line.get("topology") == "compaction":
            found.append(new(line["stored_values"]))
        elif "loss" in line and line["step"] > 3:  # the first ones try algorithms
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


def table(found, large, small, saliency, seconds, arguments):
    """Generated from what was measured alone."""
    per_step = 1e-3 * large["tokens_per_step"]
    first = found[0]
    lines = [
        "# A llama of 350M shrunk to half during a run", "",
        f"{arguments.device}, one card, {datetime.date.today().isoformat()}, commit "
        f"{arguments.commit}; {large['tokens_per_step']:,} tokens a step, {arguments.steps} steps, "
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
    lines += ["", "| dense, `bench step` | FLOPs a token | step, ms | tokens/s | memory, GB "
              "| the run end to end, s |", "|---|---|---|---|---|---|"]
    for name, result in (("first size", large), ("last size", small)):
        lines.append(f"| {name} | {result['flops_token']:.4g} | {result['step_ms']:.1f} "
                     f"| {1e3 * per_step / result['step_ms'] * 1e3:.0f} "
                     f"| {result['memory_peak_bytes'] / 1e9:.2f} | {seconds[name]:.1f} |")
    share = saliency["saliency_ms"] / saliency["step_ms"]
    lines += ["", f"The shrinking run took {seconds['shrinking']:.1f} s end to end (start, data, "
              "evaluation and checkpoint included in all three); of that its "
              f"{len(seconds['compactions'])} compactions took {sum(seconds['compactions']):.1f} s.", "",
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
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--interval", type=int, default=4, help="steps between removals")
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
    saliency = bench(arguments, "saliency", config(arguments, shape, arguments.steps, pruning))
    print(f"step {saliency['step_ms']:.2f} ms, saliency {saliency['saliency_ms']:.2f} ms more: "
          f"{saliency['saliency_ms'] / saliency['step_ms']:.2%}", flush=True)
    large = bench(arguments, "bench_large", config(arguments, shape, arguments.steps))
    seconds = {}
    seconds["shrinking"], lines = train(arguments, "shrink",
                                        config(arguments, shape, arguments.steps, pruning))
    seconds["compactions"] = compaction_seconds(os.path.join(arguments.out, "shrink"))
    planned = json.loads(call(arguments.binary, "plan",
                              os.path.join(arguments.out, "bench_large.textproto"), "--json"))
    found = stages(lines, planned["parameters_logical"], large["flops_token"])
    for stage in found:
        print(json.dumps(stage), flush=True)
    model = final_model(os.path.join(arguments.out, "shrink"))
    last = " ".join(f"{field}: {model[field]}" for field in (
        "layers", "head_size", "vocab_size", "width", "heads", "kv_heads", "feed_forward"))
    small = bench(arguments, "bench_small", config(arguments, last, arguments.steps))
    for name, dense in (("first size", shape), ("last size", last)):
        seconds[name], _ = train(arguments, "dense_" + name.split()[0],
                                 config(arguments, dense, arguments.steps))
    print(json.dumps(seconds), flush=True)
    records = [records_of(arguments, "saliency", saliency["saliency_ms"],
                          {"step_ms": saliency["step_ms"]})]
    for name, result in (("first", large), ("last", small)):
        records.append(records_of(
            arguments, f"dense_{name}_size", result["step_ms"],
            {"flops_token": result["flops_token"], "memory_bytes": result["memory_peak_bytes"],
             "end_to_end_s": seconds[name + " size"]}))
    for number, stage in enumerate(found):
        rate = stage["tokens_per_second"]
        records.append(records_of(arguments, f"stage_{number}",
                                  rate and 1e3 * large["tokens_per_step"] / rate, stage))
    records.append(records_of(arguments, "shrinking_run", 1e3 * seconds["shrinking"],
                              {"final_model": model,
                               "compactions_s": seconds["compactions"]}))
    text = table(found, large, small, saliency, seconds, arguments)
    for name, content in (("json", json.dumps(records, indent=1) + "\n"), ("md", text)):
        with open(os.path.join(arguments.results, "pruning_throughput." + name), "w",
                  encoding="utf-8") as file:
            file.write(content)
    print(text)


if __name__ == "__main__":
    main()
