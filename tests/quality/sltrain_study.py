#!/usr/bin/env python3
"""Sparse plus low-rank beside dense, static sparsity and CoLA on the quickstart's text, at equal tokens.

    python3 tests/quality/sltrain_study.py --device "NVIDIA H100"                  # five structures
    python3 tests/quality/sltrain_study.py --device "NVIDIA H100" --preset wide    # widths of blocks
    python3 tests/quality/sltrain_study.py --steps 3 --tokens-per-step 512 --validation-tokens 512

base: width 512. Dense, SPDF at 75 %, SLTrain, its blocked form and CoLA.
wide: width 1024. How much loss wider blocks cost, at 75 % alone and at 87.5 % beside rank d/8, against
blocks of 64 and against single weights: the loss beside each structure's speed.

Trains each structure at every learning rate with the first seed, then at its best one with the other seeds,
under mpirun (with --mpirun "mpirun -np 1" on one GPU); finished runs in --out are reused. Writes one
record a structure into sltrain_quality.json, beside the other preset's, and the tables
sltrain_quality.md made from all of them, into --results. Needs build/filigree and the quickstart's
data (bash launch/quickstart.sh; or --data, a directory that `filigree prepare` wrote).
"""
import argparse
import datetime
import json
import os
import platform
import statistics

import topology_study as study

# The feed-forward is whole blocks of 128. Steps: some minutes for all structures on an H100.
PRESETS = {
    "base": {"width": 512, "feed_forward": 1408, "heads": 8, "alpha": 32, "steps": 600,
             "seeds": "1234,1235,1236", "lr": "1e-3,2e-3,3e-3"},
    "wide": {"width": 1024, "feed_forward": 2816, "heads": 16, "alpha": 16, "steps": 520,
             "seeds": "1234,1235", "lr": "7e-4,1.5e-3"},
}
LAYERS = 8
BLOCKS = ((32, 32), (64, 64), (128, 64), (128, 128))


def block_name(block):
    return f"{block[0]}" if block[0] == block[1] else f"{block[0]}x{block[1]}"


def spdf_blocks(block):
    return ('parameterisation: "block_sparse" sparsity: 0.75 '
            f"block_out: {block[0]} block_in: {block[1]}")


def sltrain_blocks(preset, block):
    return ('parameterisation: "sparse_plus_low_rank" sparse_part: BLOCKS sparsity: 0.875 '
            f"block_out: {block[0]} block_in: {block[1]} rank: {preset['width'] // 8} "
            f"alpha: {preset['alpha']} compute: FACTORED")


def structures(name):
    """Name of each structure of a preset: its sparsity entry."""
    preset = PRESETS[name]
    runs = {"dense": "",
            "spdf75/unstructured": 'parameterisation: "masked" sparsity: 0.75',
            "sltrain/unstructured": 'parameterisation: "sparse_plus_low_rank" sparsity: 0.97 '
                                    f"rank: {preset['width'] // 4} alpha: {preset['alpha']}"}
    if name == "base":
        runs["sltrain/64"] = sltrain_blocks(preset, (64, 64))
        runs["cola"] = f'parameterisation: "cola" rank: {preset["width"] // 4}'
        return runs
    for block in BLOCKS:
        runs[f"spdf75/{block_name(block)}"] = spdf_blocks(block)
        runs[f"sltrain/{block_name(block)}"] = sltrain_blocks(preset, block)
    return runs


def config(arguments, entry, lr, seed):
    preset = PRESETS[arguments.preset]
    sparsity = f"sparsity {{ {entry} }}" if entry else ""
    return f"""
seed: {seed}
model {{
  family: LLAMA layers: {LAYERS} width: {preset["width"]} heads: {preset["heads"]}
  feed_forward: {preset["feed_forward"]}
}}
data {{ prepared: "{arguments.data}" }}
batch {{
  seq_len: 256 tokens_per_step: {arguments.tokens_per_step}
  micro_batch_sequences: {min(64, arguments.tokens_per_step // 256)}
}}
optimizer {{ weight_decay: 0 }}
schedule {{ lr: {lr} warmup_fraction: 0.1 }}
{sparsity}
phase {{ steps: {arguments.steps} }}
evaluation {{ every_steps: 0 tokens: {arguments.validation_tokens} }}
checkpoint {{ every_steps: 0 keep_last: 1 }}
"""


class Run:
    """One finished run: its losses and the median time of its steps."""

    def __init__(self, arguments, name, entry, lr, seed):
        name = f"{name}-lr{lr:g}-{seed}"
        self.path = study.write_config(arguments, name, config(arguments, entry, lr, seed))
        self.lr = lr
        self.loss = self._finished(arguments.steps) or study.train(arguments, name, self.path)
        steps = [line for line in self._metrics() if "step_ms" in line]
        self.step_ms = statistics.median(line["step_ms"] for line in steps)
        last = steps[-max(len(steps) // 10, 1):]
        self.train_loss = statistics.mean(line["loss"] for line in last)

    def _metrics(self):
        path = os.path.join(self.path[:-len(".textproto")], "metrics.jsonl")
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _finished(self, steps):
        """The validation loss at the end, where the run has come there."""
        return next((line["val_loss"] for line in self._metrics()
                     if "val_loss" in line and line["step"] == steps), None)


class Structure:
    """What is known of one structure so far."""

    def __init__(self, arguments, name, entry):
        self.arguments, self.name, self.entry = arguments, name, entry
        self.tried = [Run(arguments, name, entry, lr, arguments.seeds[0]) for lr in arguments.lrs]
        self.runs = [min(self.tried, key=lambda run: run.loss)]
        self.planned = study.plan(arguments, self.runs[0].path)

    def repeat(self):
        """The other seeds."""
        for seed in self.arguments.seeds[1:]:
            self.runs.append(Run(self.arguments, self.name, self.entry, self.runs[0].lr, seed))

    def record(self):
        arguments, planned = self.arguments, self.planned
        losses = [run.loss for run in self.runs]
        settings = {"preset": arguments.preset, "tokens": planned["tokens"], "lr": self.runs[0].lr,
                    "tokens_per_step": arguments.tokens_per_step,
                    "seeds": arguments.seeds[:len(losses)],
                    "losses": [round(loss, 5) for loss in losses],
                    "losses_by_lr": {f"{run.lr:g}": round(run.loss, 5) for run in self.tried},
                    "train_loss": round(statistics.mean(r.train_loss for r in self.runs), 5),
                    **{field: planned[field] for field in (
                        "parameters_logical", "parameters_stored", "flops_dense_equivalent",
                        "flops_method", "flops_executed")}}
        return {"name": f"quality/sltrain/{arguments.preset}/{self.name}/val_loss",
                "value": round(statistics.mean(losses), 5), "unit": "nats a token",
                "ours_ms": round(statistics.median(run.step_ms for run in self.runs), 3),
                "peer_ms": None, "samples": len(losses), "run_id": arguments.run_id,
                "settings": settings, "device": arguments.device,
                "date": datetime.date.today().isoformat(), "commit": arguments.commit,
                "command": f"python3 tests/quality/sltrain_study.py --preset {arguments.preset} "
                           f"--steps {arguments.steps} "
                           f"--tokens-per-step {arguments.tokens_per_step} "
                           f"--lr {','.join(f'{lr:g}' for lr in arguments.lrs)} "
                           f"--seeds {','.join(map(str, arguments.seeds))}"}


def shown(value, digits):
    """Nothing for what a record copied from a console lacks."""
    return "" if value is None else f"{value:.{digits}f}"


def structure_of(item):
    return "/".join(item["name"].split("/")[3:-1])


def verdict(losses, family):
    """The widest block whose loss is within a hundredth of that of blocks of 64."""
    within = [block for block in BLOCKS if f"{family}/{block_name(block)}" in losses
              and losses[f"{family}/{block_name(block)}"] <= losses[f"{family}/64"] + 0.01]
    return block_name(max(within, key=lambda block: block[0] * block[1]))


def table(records):
    """One preset's, from its records alone."""
    first = records[0]
    settings = first["settings"]
    preset = PRESETS[settings["preset"]]
    losses = {structure_of(r): r["value"] for r in records}
    dense = next(r for r in records if structure_of(r) == "dense")
    wide = settings["preset"] == "wide"
    spread = max(max(r["settings"]["losses"]) - min(r["settings"]["losses"]) for r in records)
    seeds = max(len(r["settings"]["seeds"]) for r in records)
    lines = [
        f"## {settings['preset']}: a llama of {LAYERS} layers of width {preset['width']}", "",
        f"After {settings['tokens']:,} tokens, {settings['tokens_per_step']:,} a step; each structure at "
        f"the best of the learning rates {', '.join(settings['losses_by_lr'])} (with the first seed); "
        + (f"mean over {seeds} seeds" if seeds > 1 else "one seed")
        + f"; no weight decay. Device {first['device']}, {first['date']}, commit {first['commit']}. " + (
            f"The seeds of one structure are up to {spread:.4f} apart." if seeds > 1 else
            "One seed: differences of a hundredth mean little."), "",
        f"`{first['command']}`", "",
        "| structure | loss | minus dense | " + ("minus blocks of 64 | " if wide else "")
        + "learning rate | training loss | stored values | executed FLOPs of dense's | ms a step |",
        "|---|---|---|" + ("---|" if wide else "") + "---|---|---|---|---|"]
    for item in sorted(records, key=lambda r: r["value"]):
        s, name = item["settings"], structure_of(item)
        narrow = losses.get(name.split("/")[0] + "/64")
        gap = "" if not wide else f"| {item['value'] - narrow:+.4f} " if narrow else "| "
        lines.append(
            f"| {name} | {item['value']:.4f} | {item['value'] - dense['value']:+.4f} {gap}"
            f"| {s['lr']:g} | {shown(s['train_loss'], 4)} | {s['parameters_stored'] / 1e6:.2f}M "
            f"| {s['flops_executed'] / dense['settings']['flops_executed']:.3f} "
            f"| {shown(item['ours_ms'], 2)} |")
    if wide:
        lines += [""] + [
            f"{family}: the widest blocks within 0.01 nats of 64 are {verdict(losses, family)}."
            for family in ("spdf75", "sltrain") if f"{family}/64" in losses]
    return "\n".join(lines) + "\n"


def document(records):
    lines = [
        "# Sparse plus low-rank, quality", "",
        "Held-out loss in nats a token on the quickstart's text (Python's documentation, 3.5M tokens of a "
        "vocabulary of 2048, seen several times over). *spdf75*: 75 % of the weights absent; *sltrain*: "
        "3 % of single weights beside rank d/4, or 12.5 % in blocks beside rank d/8; *cola*: rank d/4 "
        "with a nonlinearity. FLOPs are those of the whole model. Written by "
        "`tests/quality/sltrain_study.py` with `sltrain_quality.json`.", ""]
    for preset in PRESETS:
        own = [r for r in records if r["settings"]["preset"] == preset]
        if own:
            lines.append(table(own))
    return "\n".join(lines)


def write_results(arguments, records):
    """Replaces this preset's records, keeps the other's."""
    path = os.path.join(arguments.results, "sltrain_quality.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            records = [r for r in json.load(file)
                       if r["settings"]["preset"] != arguments.preset] + records
    with open(path, "w", encoding="utf-8") as file:
        json.dump(records, file, indent=1)
        file.write("\n")
    with open(path[:-len(".json")] + ".md", "w", encoding="utf-8") as file:
        file.write(document(records))


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--steps", type=int, help="of each run; default: the preset's")
    parser.add_argument("--tokens-per-step", type=int, default=16384)
    parser.add_argument("--device", default=f"CPU ({platform.machine()})",
                        help="the records' name of what the runs ran on")
    parser.add_argument("--seeds", help="comma-separated; default: the preset's")
    parser.add_argument("--lr", help="comma-separated; default: the preset's")
    parser.add_argument("--validation-tokens", type=int, default=0, help="at most; 0: all")
    parser.add_argument("--only", default="", help="comma-separated parts of structures' names")
    parser.add_argument("--data", default=os.path.join(study.ROOT, "runs", "quickstart", "data"))
    parser.add_argument("--binary", default=os.path.join(study.ROOT, "build", "filigree"))
    parser.add_argument("--mpirun", default="mpirun --oversubscribe --bind-to none -np 2")
    parser.add_argument("--out", default=os.path.join(study.ROOT, "runs", "sltrain_study"))
    parser.add_argument("--results", default=os.path.join(study.ROOT, "docs", "results"))
    parser.add_argument("--commit", help="default: what git says")
    arguments = parser.parse_args()
    study.complete(arguments)
    preset = PRESETS[arguments.preset]
    arguments.steps = arguments.steps or preset["steps"]
    arguments.seeds = [int(seed) for seed in (arguments.seeds or preset["seeds"]).split(",")]
    arguments.lrs = [float(lr) for lr in (arguments.lr or preset["lr"]).split(",")]
    arguments.run_id = f"{arguments.preset}-{arguments.tokens_per_step}x{arguments.steps}"
    arguments.out = os.path.join(arguments.out, arguments.run_id)
    return arguments


def main():
    arguments = parse()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.results, exist_ok=True)
    wanted = [part for part in arguments.only.split(",") if part]
    measured = []

    def write():  # after every structure: a session that is cut keeps what is measured
        write_results(arguments, [structure.record() for structure in measured])

    for name, entry in structures(arguments.preset).items():
        if wanted and name != "dense" and not any(part in name for part in wanted):
            continue
        measured.append(Structure(arguments, name, entry))
        write()
    for structure in measured:
        structure.repeat()
        write()


if __name__ == "__main__":
    main()
