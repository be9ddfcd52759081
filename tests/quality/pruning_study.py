#!/usr/bin/env python3
"""A model shrunk to about half while it pretrains, on the quickstart's text, against its alternatives.

    python3 tests/quality/pruning_study.py                 # about half an hour on two cores
    python3 tests/quality/pruning_study.py --steps 40      # a try of the command itself

Runs, all llamas of the quickstart's shape at first, over the same tokens unless said otherwise:
  large            the unpruned model
  shrunk/...       pruned along a ramp from 20 to 70 % of the run (EfficientLLM), by saliency and by
                   magnitude, without the second-order update, and progressively (HESSO)
  small            a dense model of the final size from scratch, equal tokens
  small_compute    the same with as many more tokens as the ramp's larger models cost operations
  one_shot         the large model trained to 70 %, then pruned at once (second-order update
                   included) and recovered over the rest
Finished runs in --out are reused. Writes pruning_study.json and the table pruning_study.md made
from it into --results. Needs build/filigree and the quickstart's data (bash launch/quickstart.sh).
"""
import argparse
import json
import os

import topology_study as study

TARGET_SHARE = 0.5
ALIGNMENT = 32


def pruning(target, begin, end, extra=""):
    return (f"pruning {{ target_parameters: {target} begin: {begin} end: {end} "
            f"feed_forward {{ alignment: {ALIGNMENT} }} stem {{ alignment: {ALIGNMENT} }} {extra} }}")


def shape_of(run):
    """Width, feed-forward, heads and parameters of the model that a run ended with."""
    folder = os.path.join(run, "checkpoints")
    newest = sorted(name for name in os.listdir(folder) if name.startswith("step_"))[-1]
    with open(os.path.join(folder, newest, "manifest.json"), encoding="utf-8") as file:
        model = json.load(file)["model"]
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    stored = [line["stored_values"] for line in lines if "live_values" in line]
    return model, stored[-1] if stored else None


def config(arguments, phases, model=None, keep=1):
    shape = (f"layers: {study.LAYERS} width: {study.WIDTH} heads: {study.HEADS} kv_heads: 2 "
             f"feed_forward: {study.FEED_FORWARD}")
    if model:
        shape = (f"layers: {model['layers']} width: {model['width']} heads: {model['heads']} "
                 f"kv_heads: {model['kv_heads']} head_size: {model['head_size']} "
                 f"feed_forward: {model['feed_forward']}")
    return f"""
seed: {arguments.seed}
model {{ family: LLAMA tied_head: true {shape} }}
data {{ prepared: "{arguments.data}" }}
batch {{ seq_len: 256 tokens_per_step: 8192 micro_batch_sequences: 8 }}
optimizer {{ weight_decay: 0.1 }}
schedule {{ lr: {arguments.lr} warmup_fraction: 0.05 }}
evaluation {{ every_steps: 0 tokens: 65536 }}
checkpoint {{ every_steps: 0 keep_last: {keep} }}
{chr(10).join(phases)}
"""


def run(arguments, name, text):
    path = study.write_config(arguments, name, text)
    planned = study.plan(arguments, path)
    loss = study.train(arguments, name, path)
    return {"name": f"quality/pruning/{name}/val_loss", "value": round(loss, 5),
            "unit": "nats a token", "samples": 1,
            "run_id": f"seed{arguments.seed}-steps{arguments.steps}",
            "settings": {"tokens": planned["tokens"], "lr": arguments.lr,
                         "parameters": planned["parameters_logical"],
                         "flops_method": planned["flops_method"]},
            "device": "CPU", "commit": study.call(["git", "rev-parse", "--short", "HEAD"]).strip(),
            "command": f"python3 tests/quality/pruning_study.py --steps {arguments.steps}",
            "path": path[:-len(".textproto")]}


def table(records, arguments):
    """Generated from the records alone."""
    small = next(r["value"] for r in records if r["name"].endswith("/small/val_loss"))
    lines = ["# Pruning during pretraining", "",
             f"Held-out loss in nats a token, {os.path.relpath(arguments.data, study.ROOT)}, seed "
             f"{arguments.seed}, learning rate {arguments.lr}, not tuned for any run. One seed: differences of a "
             "hundredth mean nothing.", "",
             f"`{records[0]['command']}` writes this file and `pruning_study.json`.", "",
             "| run | final parameters | tokens | FLOPs by method | loss | minus small |",
             "|---|---|---|---|---|---|"]
    for item in records:
        settings = item["settings"]
        lines.append(f"| {'/'.join(item['name'].split('/')[2:-1])} "
                     f"| {settings['final_parameters'] / 1e6:.2f}M | {settings['tokens'] / 1e6:.2f}M "
                     f"| {settings['flops_method']:.3g} | {item['value']:.4f} "
                     f"| {item['value'] - small:+.4f} |")
    return "\n".join(lines) + "\n"


def main():
    arguments = study.parse()
    arguments.out = arguments.out.replace("topology_study", "pruning_study")
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.results, exist_ok=True)
    steps = arguments.steps
    whole = study.phase(steps)
    records = [run(arguments, "large", config(arguments, [whole]))]
    size = records[0]["settings"]["parameters"]
    target = int(size * TARGET_SHARE)
    ramps = {"taylor_second": "", "taylor_diagonal": 'criterion: "taylor_diagonal"',
             "magnitude": 'criterion: "magnitude"', "no_update": "update_remaining: false",
             "progressive": "removal: PROGRESSIVE"}
    for name, extra in ramps.items():
        body = pruning(target, 0.2, 0.7, extra)
        records.append(run(arguments, f"shrunk/{name}", config(arguments, [study.phase(steps, body)])))
    shrunk = records[1]
    model, final = shape_of(shrunk["path"])
    small = run(arguments, "small", config(arguments, [whole], model))
    records.append(small)
    longer = round(steps * shrunk["settings"]["flops_method"] / small["settings"]["flops_method"])
    records.append(run(arguments, "small_compute", config(arguments, [study.phase(longer)], model)))
    records.append(run(arguments, "one_shot", config(
        arguments, [study.phase(steps, pruning(target, 0.7, 0.7))])))
    for item in records:
        _, stored = shape_of(item.pop("path"))
        item["settings"]["final_parameters"] = stored or item["settings"]["parameters"]
    if abs(small["settings"]["parameters"] - final) > 0.01 * final:
        raise SystemExit(f"the control has {small['settings']['parameters']}, not {final}")
    for name, content in (("json", json.dumps(records, indent=1) + "\n"),
                          ("md", table(records, arguments))):
        path = os.path.join(arguments.results, f"pruning_study.{name}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)


if __name__ == "__main__":
    main()
