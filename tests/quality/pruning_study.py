#!/usr/bin/env python3
"""A model shrunk to about half while it pretrains, on the quickstart's text, against its alternatives.

    python3 tests/quality/pruning_study.py --device "NVIDIA H100" --jobs 2     # four minutes on a GPU
    python3 tests/quality/pruning_study.py --steps 20 --lrs 4e-3 --seeds 1     # a try of the command itself

First a sweep over --lrs with the unpruned model; every other run takes the best of them. Then, for
each of --seeds, over the same tokens unless said otherwise:
  large            the unpruned model
  shrunk/...       pruned along a ramp from 20 to 70 % of the run (EfficientLLM), by each criterion
                   named, without the second-order update (no_update), and progressively (HESSO)
  pretrained/...   starts from the finished large run (init_from), with a ramp from 5 to 75 % of as
                   many steps again: the paper's own setting, which does not count the source's
                   tokens; neither do the columns here
  one_shot         the large model trained to 70 %, then pruned at once (second-order update
                   included) and recovered over the rest
  small            a dense model of the final size from scratch, equal tokens
  small_compute    the same with as many more tokens as the ramp's larger models cost operations
Finished runs in --out are reused. Writes pruning_study.json and the table pruning_study.md made
from it into --results. Needs build/filigree and the quickstart's data (bash launch/quickstart.sh).
"""
import argparse
import datetime
import json
import os
import platform
import statistics

import topology_study as study

TARGET_SHARE = 0.5
ALIGNMENT = 32
# The quickstart's model with more, smaller heads: of its two key-value heads one would be half.
LARGE = {"layers": 4, "width": 256, "heads": 8, "kv_heads": 8, "head_size": 32, "feed_forward": 704}
RAMPS = {"taylor_second": "", "taylor_diagonal": 'criterion: "taylor_diagonal"',
         "magnitude": 'criterion: "magnitude"', "no_update": "update_remaining: false",
         "progressive": "removal: PROGRESSIVE"}
PRETRAINED = ("taylor_second", "magnitude", "no_update")


def pruning(target, begin, end, extra=""):
    return (f"pruning {{ target_parameters: {target} begin: {begin} end: {end} "
            f"feed_forward {{ alignment: {ALIGNMENT} }} stem {{ alignment: {ALIGNMENT} }} {extra} }}")


def config(arguments, model, seed, lr, phase, source):
    shape = " ".join(f"{field}: {model[field]}" for field in LARGE)
    init_from = f'init_from: "{source}"' if source else ""
    return f"""
seed: {seed}
{init_from}
model {{ family: LLAMA tied_head: true {shape} }}
data {{ prepared: "{arguments.data}" }}
batch {{ seq_len: 256 tokens_per_step: 8192 micro_batch_sequences: {arguments.micro_batch} }}
optimizer {{ weight_decay: 0.1 }}
schedule {{ lr: {lr} warmup_fraction: 0.05 }}
evaluation {{ every_steps: 0 tokens: 65536 }}
checkpoint {{ every_steps: 0 keep_last: 1 }}
log {{ tensorboard: false }}
{phase}
"""


def final_model(path):
    """The model that the run of that configuration ended with."""
    folder = os.path.join(path[:-len(".textproto")], "checkpoints")
    newest = sorted(name for name in os.listdir(folder) if name.startswith("step_"))[-1]
    with open(os.path.join(folder, newest, "manifest.json"), encoding="utf-8") as file:
        return json.load(file)["model"]


def final_parameters(path, planned):
    """Of all stored ones, after the last removal."""
    with open(os.path.join(path[:-len(".textproto")], "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    stored = [line["stored_values"] for line in lines if "live_values" in line]
    return stored[-1] if stored else planned["parameters_logical"]


def run(arguments, name, model, seed, lr, phase, source=""):
    path = study.write_config(arguments, f"{name}-lr{lr}-seed{seed}",
                              config(arguments, model, seed, lr, phase, source))
    planned = study.plan(arguments, path)
    loss = study.train(arguments, f"{name}, lr {lr}, seed {seed}", path)
    shape = final_model(path)
    return {"name": f"quality/pruning/{name}/val_loss", "value": round(loss, 5),
            "unit": "nats a token", "samples": 1, "run_id": f"lr{lr}-seed{seed}-steps{arguments.steps}",
            "settings": {"seed": seed, "lr": lr, "tokens": planned["tokens"],
                         "final_parameters": final_parameters(path, planned),
                         "final_model": {field: shape[field] for field in LARGE},
                         "flops_method": planned["flops_method"]},
            "device": arguments.device, "date": datetime.date.today().isoformat(),
            "commit": arguments.commit, "command": arguments.command}


def label(record):
    return "/".join(record["name"].split("/")[2:-1])


def table(sweep, records, arguments):
    """Generated from the records alone."""
    of_run = {}
    for item in records:
        of_run.setdefault(label(item), []).append(item)
    mean = {name: statistics.mean(r["value"] for r in items) for name, items in of_run.items()}
    first = records[0]
    rates = ", ".join(f"{r['settings']['lr']}: {r['value']:.4f}" for r in sweep)
    seeds = " | ".join(f"seed {seed}" for seed in arguments.seeds)
    lines = [
        "# Pruning during pretraining", "",
        f"Held-out loss in nats a token on the quickstart's text after "
        f"{first['settings']['tokens']:,} tokens (`small_compute`: more), a llama of "
        f"{LARGE['layers']} layers of width {LARGE['width']} shrunk to {TARGET_SHARE:.0%} of its "
        f"parameters. Learning rate {first['settings']['lr']}, the best for the unpruned model of "
        f"({rates}); not tuned for any other run. Device {first['device']}, {first['date']}, "
        f"commit {first['commit']}.", "",
        f"`{first['command']}` writes this file and `pruning_study.json`.", "",
        f"| run | final parameters | FLOPs by method | {seeds} | mean | minus small |",
        "|" + "---|" * (5 + len(arguments.seeds))]
    for name, items in of_run.items():
        losses = " | ".join(f"{r['value']:.4f}" for r in items)
        sizes = statistics.mean(r["settings"]["final_parameters"] for r in items)
        flops = statistics.mean(r["settings"]["flops_method"] for r in items)
        lines.append(f"| {name} | {sizes / 1e6:.3f}M | {flops:.3g} | {losses} | {mean[name]:.4f} "
                     f"| {mean[name] - mean['small']:+.4f} |")
    return "\n".join(lines) + "\n"


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="of each run, of 8192 tokens")
    parser.add_argument("--lrs", default="1e-3,2e-3,3e-3", help="tried with the unpruned model")
    parser.add_argument("--seeds", default="1234,1235,1236")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--gpus", type=int, default=0, help="that jobs take in turn; 0: any sees all")
    parser.add_argument("--micro-batch", type=int, default=32, help="sequences, of 32 a step")
    parser.add_argument("--device", default=f"CPU ({platform.machine()})",
                        help="the records' name of what the runs ran on")
    parser.add_argument("--data", default=os.path.join(study.ROOT, "runs", "quickstart", "data"))
    parser.add_argument("--binary", default=os.path.join(study.ROOT, "build", "filigree"))
    parser.add_argument("--mpirun", default="", help="before the binary, such as \"mpirun -np 2\"")
    parser.add_argument("--commit", default="", help="the records' (default: git says it)")
    parser.add_argument("--out", default=os.path.join(study.ROOT, "runs", "pruning_study"))
    parser.add_argument("--results", default=os.path.join(study.ROOT, "docs", "results"))
    arguments = parser.parse_args()
    if arguments.steps < 20:
        parser.error("--steps below 20 leaves the ramp without steps")
    arguments.command = (f"python3 tests/quality/pruning_study.py --steps {arguments.steps} "
                         f"--lrs {arguments.lrs} --seeds {arguments.seeds}")
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    study.complete(arguments)
    arguments.out = os.path.join(arguments.out, f"steps{arguments.steps}")
    return arguments


def main():
    arguments = parse()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.results, exist_ok=True)
    steps, seeds = arguments.steps, arguments.seeds

    with study.workers(arguments) as pool:
        def all_of(runs):
            return list(pool.map(lambda one: run(arguments, *one), runs))
        whole = study.phase(steps)
        sweep = all_of([("large", LARGE, seeds[0], lr, whole) for lr in arguments.lrs.split(",")])
        best = min(sweep, key=lambda r: r["value"])
        lr = best["settings"]["lr"]
        target = int(best["settings"]["final_parameters"] * TARGET_SHARE)
        ramps = {f"shrunk/{name}": pruning(target, 0.2, 0.7, extra) for name, extra in RAMPS.items()}
        ramps["one_shot"] = pruning(target, 0.7, 0.7)
        records = [best] + all_of([("large", LARGE, seed, lr, whole) for seed in seeds[1:]])
        records += all_of([(name, LARGE, seed, lr, study.phase(steps, body))
                           for name, body in ramps.items() for seed in seeds])
        records += all_of([
            (f"pretrained/{name}", LARGE, seed, lr,
             study.phase(steps, pruning(target, 0.05, 0.75, RAMPS[name])),
             os.path.join(arguments.out, f"large-lr{lr}-seed{seed}"))
            for name in PRETRAINED for seed in seeds])
        shrunk = next(r for r in records if label(r) == "shrunk/taylor_second")
        model = shrunk["settings"]["final_model"]
        small = all_of([("small", model, seed, lr, whole) for seed in seeds])
        longer = round(steps * shrunk["settings"]["flops_method"]
                       / small[0]["settings"]["flops_method"])
        records += small + all_of([("small_compute", model, seed, lr, study.phase(longer))
                                   for seed in seeds])
    sizes = [r["settings"]["final_parameters"] for r in (shrunk, small[0])]
    if sizes[0] != sizes[1]:
        raise SystemExit(f"the control has {sizes[1]} parameters, not {sizes[0]}")
    everything = records + [r for r in sweep if r is not best]
    for name, content in (("json", json.dumps(everything, indent=1) + "\n"),
                          ("md", table(sweep, records, arguments))):
        path = os.path.join(arguments.results, f"pruning_study.{name}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)


if __name__ == "__main__":
    main()
