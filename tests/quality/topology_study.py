#!/usr/bin/env python3
"""Every topology rule at 75 % on the quickstart's text, at equal tokens, with dense controls.

    python3 tests/quality/topology_study.py                 # the quickstart's model; about an hour
    python3 tests/quality/topology_study.py --steps 20      # a try of the command itself
    python3 tests/quality/topology_study.py --mpirun "mpirun -np 1" --device "NVIDIA H100" \
        --steps 1200 --jobs 4 --gpus 2                      # minutes

Trains one run a rule under mpirun, a dense model of the same shape, and for each average number of
parameters that `filigree plan` finds a dense model of that size ("The Journey Matters", arXiv
2501.12486, predicts equal loss). Finished runs in --out are reused. Writes topology_rules.json, one
record a run, and the table topology_rules.md made from it, into --results.

Needs build/filigree and the quickstart's data (bash launch/quickstart.sh; or --data, a directory
that `filigree prepare` wrote).
"""
import argparse
import concurrent.futures
import datetime
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import threading

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
LAYERS, HEADS = 4, 4
SPARSITY = 0.75


def entry(rule, fields="", structure="masked", sparsity=SPARSITY):
    blocks = "block_out: 32 block_in: 32" if structure == "block32" else ""
    parameterisation = "block_sparse" if structure == "block32" else "masked"
    return (f'sparsity {{ parameterisation: "{parameterisation}" rule: "{rule}" '
            f'sparsity: {sparsity} {blocks} {fields} }}')


def phase(steps, body=""):
    return f"phase {{ steps: {steps} {body} }}"


def rules(steps):
    """Name of each run: its phases. Intervals are a fiftieth of the run, so that none is idle."""
    every = f"update_interval: {max(steps // 50, 1)}"
    tail = max(steps * 13 // 100, 1)  # variable SPDF's share of dense tokens
    round_steps, rewind = steps // 4, max(steps // 100, 1)
    runs = {"dense": [phase(steps)]}
    for structure in ("masked", "block32"):
        def add(name, rule, fields="", **arguments):
            runs[f"{name}/{structure}"] = [
                phase(steps, entry(rule, fields, structure, **arguments))]
        add("static_random", "static_random")
        add("static_erk", "static_random", 'distribution: "erk"')
        add("snip", "one_shot", 'criterion: "snip"')
        add("grasp", "one_shot", 'criterion: "grasp"')
        add("gradual_magnitude", "gradual_magnitude", every)
        add("gradual_taylor", "gradual_magnitude", f'criterion: "taylor" {every}')
        add("gradual_wanda", "gradual_magnitude", f'criterion: "wanda" {every}')
        add("gradual_movement", "gradual_magnitude", f'criterion: "movement" {every}')
        add("global_magnitude", "global_magnitude", every)
        add("journey", "journey", every)
        add("idea_prune", "idea_prune", every)
        add("set", "set", every)
        add("rigl", "rigl", every)
        add("granet", "granet", every)
    runs["sparse_to_dense/masked"] = [
        phase(steps, entry("sparse_to_dense", f"initial_sparsity: {SPARSITY} {every}", sparsity=0))]
    runs["dense_tail/masked"] = [phase(steps - tail, entry("static_random")),
                                 phase(tail, "schedule { warmup_fraction: 0.1 }")]
    runs["lottery/masked"] = [phase(steps - 3 * round_steps)] + [
        phase(round_steps, f"rewind_step: {rewind} " + entry(
            "iterative_magnitude", sparsity=round(1 - (1 - SPARSITY) ** (number / 3), 6)))
        for number in (1, 2, 3)]
    return runs


def shape_of(arguments):
    """Width and feed-forward of the sparse models: the quickstart's at 256."""
    return arguments.width, arguments.width * 11 // 4


def config(arguments, phases, shape=None):
    width, feed_forward = shape or shape_of(arguments)
    return f"""
seed: {arguments.seed}
model {{
  family: LLAMA layers: {LAYERS} width: {width} heads: {HEADS} kv_heads: 2
  feed_forward: {feed_forward} tied_head: true
}}
data {{ prepared: "{arguments.data}" }}
batch {{ seq_len: 256 tokens_per_step: {arguments.tokens_per_step} micro_batch_sequences: 16 }}
optimizer {{ weight_decay: 0.1 }}
schedule {{ lr: {arguments.lr} warmup_fraction: 0.05 }}
evaluation {{ every_steps: 0 tokens: 65536 }}
checkpoint {{ every_steps: 0 keep_last: 1 }}
{chr(10).join(phases)}
"""


WORKER = threading.local()


def workers(arguments):
    """--jobs threads, whose calls see one of --gpus GPUs each, in turn."""
    turns = itertools.cycle(range(arguments.gpus)) if arguments.gpus else itertools.repeat(None)

    def start():
        gpu = next(turns)
        WORKER.environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}

    return concurrent.futures.ThreadPoolExecutor(arguments.jobs, initializer=start)


def call(words):
    environment = {**os.environ, **getattr(WORKER, "environment", {})}
    result = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False,
                            env=environment)
    if result.returncode:
        raise SystemExit(f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}")
    return result.stdout


def write_config(arguments, name, text):
    path = os.path.join(arguments.out, name.replace("/", "_") + ".textproto")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def plan(arguments, path):
    return json.loads(call([arguments.binary, "plan", path, "--json"]))


def train(arguments, name, path):
    """Trains, unless it is done; returns the last validation loss."""
    run = path[:-len(".textproto")]
    call([*shlex.split(arguments.mpirun), arguments.binary, "train", path, "--out", run])
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    loss = [line["val_loss"] for line in lines if "val_loss" in line][-1]
    print(f"{name}: {loss:.4f}", flush=True)
    return loss


def control_shape(arguments, parameters, name):
    """Width and feed-forward of the dense model, `name`, whose size is nearest to `parameters`."""
    reference = plan(arguments, write_config(arguments, f"{name}_shape",
                                             config(arguments, [phase(1)])))
    widest, most = shape_of(arguments)
    vocabulary = (reference["parameters_logical"] - widest
                  - LAYERS * (2 * widest + 3 * widest * widest + 3 * widest * most)) // widest
    best = None
    for width in range(8 * HEADS, widest + 1, 2 * HEADS):
        near = most * width // widest  # the reference's proportions, to two fifths
        for feed_forward in range(near * 3 // 5, near * 7 // 5 + 1):
            size = (vocabulary * width + width
                    + LAYERS * (2 * width + 3 * width * width + 3 * width * feed_forward))
            gap = abs(size - parameters)
            if best is None or gap < best[0]:
                best = (gap, (width, feed_forward))
    return best[1]


def record(name, loss, planned, arguments):
    return {"name": f"quality/topology_rules_75/{name}/val_loss", "value": round(loss, 5),
            "unit": "nats a token", "ours_ms": None, "peer_ms": None, "samples": 1,
            "run_id": arguments.run_id,
            "settings": {"tokens": planned["tokens"], "lr": arguments.lr,
                         "width": arguments.width, "tokens_per_step": arguments.tokens_per_step,
                         "parameters": planned["parameters_logical"],
                         "average_parameters": planned["dense_control_parameters"],
                         "average_density": round(planned["average_density"], 5),
                         "final_sparsity": round(planned["final_sparsity"], 5),
                         "flops_method": planned["flops_method"]},
            "device": arguments.device, "date": datetime.date.today().isoformat(),
            "commit": arguments.commit,
            "command": "python3 tests/quality/topology_study.py "
                       f"--width {arguments.width} --tokens-per-step {arguments.tokens_per_step} "
                       f"--steps {arguments.steps} --seed {arguments.seed} --lr {arguments.lr}"}


def run(arguments, name, phases, shape=None):
    """Plans and trains; its record."""
    path = write_config(arguments, name, config(arguments, phases, shape))
    planned = plan(arguments, path)
    return record(name, train(arguments, name, path), planned, arguments)


def run_control(arguments, size):
    """The record of a dense model of `size` parameters."""
    name = f"dense_{size}"
    control = run(arguments, name, [phase(arguments.steps)], control_shape(arguments, size, name))
    control["settings"]["control_of"] = size
    if not math.isclose(control["settings"]["parameters"], size, rel_tol=0.01):
        raise SystemExit(f"{name}: the control has {control['settings']['parameters']} parameters")
    return control


def table(records, arguments):
    """Generated from the records alone."""
    dense = next(r["value"] for r in records if "/dense/" in r["name"])
    controls = {r["settings"]["control_of"]: r["value"]
                for r in records if "control_of" in r["settings"]}
    first = records[0]
    lines = [
        "# Topology rules at 75 %, equal tokens", "",
        f"Held-out loss in nats a token after {first['settings']['tokens']:,} tokens of "
        f"{os.path.relpath(arguments.data, ROOT)}, a llama of {LAYERS} layers of width "
        f"{arguments.width}, seed {arguments.seed}, learning rate {arguments.lr}, not tuned for any "
        "run. *Control*: a dense model with as many parameters as the run has on average. "
        f"Device {first['device']}, {first['date']}, commit {first['commit']}. One seed: "
        "differences of a hundredth mean nothing.", "",
        f"`{first['command']}` writes this file and `topology_rules.json`.", "",
        "| rule | layout | final zeros | average density | average parameters | loss | "
        "minus dense | minus control |", "|---|---|---|---|---|---|---|---|"]
    for item in sorted((r for r in records if "control_of" not in r["settings"]),
                       key=lambda r: r["value"]):
        parts = item["name"].split("/")[2:-1]
        settings = item["settings"]
        control = controls.get(settings["average_parameters"])
        gap = "" if control is None else f"{item['value'] - control:+.4f}"
        lines.append(
            f"| {parts[0]} | {parts[1] if len(parts) > 1 else 'dense'} "
            f"| {100 * settings['final_sparsity']:.1f} % | {settings['average_density']:.3f} "
            f"| {settings['average_parameters'] / 1e6:.2f}M | {item['value']:.4f} "
            f"| {item['value'] - dense:+.4f} "
            f"| {gap} |")
    return "\n".join(lines) + "\n"


def complete(arguments):
    """Paths that hold wherever a run is started, and the commit where none is given."""
    for field in ("data", "binary", "out", "results"):
        setattr(arguments, field, os.path.abspath(getattr(arguments, field)))
    if not arguments.commit:
        arguments.commit = call(["git", "rev-parse", "--short", "HEAD"]).strip()


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--width", type=int, default=256, help="of the sparse models")
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--device", default=f"CPU ({platform.machine()})",
                        help="the records' name of what the runs ran on")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--gpus", type=int, default=0, help="that jobs take in turn; 0: any sees all")
    parser.add_argument("--commit", default="", help="the records' (default: git says it)")
    parser.add_argument("--only", default="", help="comma-separated parts of run names")
    parser.add_argument("--data", default=os.path.join(ROOT, "runs", "quickstart", "data"))
    parser.add_argument("--binary", default=os.path.join(ROOT, "build", "filigree"))
    parser.add_argument("--mpirun", default="mpirun --oversubscribe --bind-to none -np 2")
    parser.add_argument("--out", default=os.path.join(ROOT, "runs", "topology_study"))
    parser.add_argument("--results", default=os.path.join(ROOT, "docs", "results"))
    arguments = parser.parse_args()
    complete(arguments)
    if arguments.steps < 20:
        parser.error("--steps below 20 leaves phases without steps")
    arguments.run_id = (f"width{arguments.width}-{arguments.tokens_per_step}x{arguments.steps}-"
                        f"lr{arguments.lr}-seed{arguments.seed}")
    arguments.out = os.path.join(arguments.out, arguments.run_id)
    return arguments


def main():
    arguments = parse()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.results, exist_ok=True)
    wanted = [part for part in arguments.only.split(",") if part]
    chosen = [(name, phases) for name, phases in rules(arguments.steps).items()
              if not wanted or name == "dense" or any(part in name for part in wanted)]
    with workers(arguments) as pool:
        records = list(pool.map(lambda item: run(arguments, *item), chosen))
        sizes = sorted({r["settings"]["average_parameters"] for r in records[1:]})
        records += pool.map(lambda size: run_control(arguments, size), sizes)
    with open(os.path.join(arguments.results, "topology_rules.json"), "w", encoding="utf-8") as file:
        json.dump(records, file, indent=1)
        file.write("\n")
    with open(os.path.join(arguments.results, "topology_rules.md"), "w", encoding="utf-8") as file:
        file.write(table(records, arguments))


if __name__ == "__main__":
    main()
