#!/usr/bin/env python3
"""What a byte of GELU's derivative costs in loss, against its input in bf16, on the quickstart's text.

    python3 tests/quality/gelu_code_study.py --device "NVIDIA H100"
    python3 tests/quality/gelu_code_study.py --steps 300 --width 128 --tokens-per-step 2048 --lr 3e-3 \\
        --validation-tokens 16384                                          # minutes on a processor core

A GPT of four layers, dense and in blocks at 75 %, with and without model { gelu_derivative_bits: 8 },
from several seeds: what one seed differs by from another is what the difference is held against. Writes
gelu_codes.json, one record a structure and form, and the table gelu_codes.md made from it, into
--results. Needs build/filigree and the quickstart's data (bash launch/quickstart.sh; or --data, a directory
that `filigree prepare` wrote).
"""
import argparse
import datetime
import json
import os
import platform
import statistics

import topology_study as study

STRUCTURES = ("dense", "blocks75")
FORMS = {"input": 0, "codes": 8}


def config(arguments, structure, bits, seed):
    side = arguments.width // 8  # of a block
    entry = "" if structure == "dense" else (
        'sparsity { parameterisation: "block_sparse" sparsity: 0.75 '
        f"block_out: {side} block_in: {side} }}")
    return f"""
seed: {seed}
model {{
  family: GPT2 layers: 4 width: {arguments.width} heads: {max(arguments.width // 64, 2)}
  gelu_derivative_bits: {bits}
}}
data {{ prepared: "{arguments.data}" }}
batch {{
  seq_len: 256 tokens_per_step: {arguments.tokens_per_step}
  micro_batch_sequences: {min(32, arguments.tokens_per_step // 256)}
}}
optimizer {{ weight_decay: 0.1 }}
schedule {{ lr: {arguments.lr} warmup_fraction: 0.05 }}
{entry}
phase {{ steps: {arguments.steps} }}
evaluation {{ every_steps: 0 tokens: {arguments.validation_tokens} }}
checkpoint {{ every_steps: 0 keep_last: 1 }}
"""


def losses(arguments, structure, form):
    """The validation loss at the end, a seed each."""
    found = []
    for seed in arguments.seeds:
        name = f"{structure}-{form}-{seed}"
        text = config(arguments, structure, FORMS[form], seed)
        found.append(study.train(arguments, name, study.write_config(arguments, name, text)))
    return found


def record(arguments, structure, form, found):
    return {"name": f"quality/gelu_codes/{structure}/{form}/val_loss",
            "value": round(statistics.mean(found), 5), "unit": "nats a token", "ours_ms": None,
            "peer_ms": None, "samples": len(found), "run_id": arguments.run_id,
            "settings": {"seeds": arguments.seeds, "losses": [round(loss, 5) for loss in found],
                         "lr": arguments.lr, "steps": arguments.steps,
                         "tokens_per_step": arguments.tokens_per_step, "width": arguments.width},
            "device": arguments.device, "date": datetime.date.today().isoformat(),
            "commit": arguments.commit,
            "command": f"python3 tests/quality/gelu_code_study.py --steps {arguments.steps} "
                       f"--tokens-per-step {arguments.tokens_per_step} --width {arguments.width} "
                       f"--validation-tokens {arguments.validation_tokens} --lr {arguments.lr} "
                       f"--seeds {','.join(map(str, arguments.seeds))}"}


def table(records):
    """Generated from the records alone."""
    first = records[0]
    tokens = first["settings"]["steps"] * first["settings"]["tokens_per_step"]
    lines = [
        "# A byte of GELU's derivative instead of its input", "",
        f"Held-out loss in nats a token after {tokens:,} tokens of the quickstart's text, a GPT of 4 layers of "
        f"width {first['settings']['width']}, learning rate {first['settings']['lr']}. *Spread*: the standard deviation between "
        f"seeds that keep the input. Device {first['device']}, {first['date']}, commit {first['commit']}.",
        "", f"`{first['command']}` writes this file and `gelu_codes.json`.", "",
        "| structure | input | codes | codes minus input, seed by seed | mean | spread |",
        "|---|---|---|---|---|---|"]
    by_name = {tuple(r["name"].split("/")[2:4]): r for r in records}
    for structure in dict.fromkeys(name[0] for name in by_name):
        usual, coded = by_name[structure, "input"], by_name[structure, "codes"]
        pairs = zip(coded["settings"]["losses"], usual["settings"]["losses"])
        differences = [a - b for a, b in pairs]
        spread = (f"{statistics.stdev(usual['settings']['losses']):.4f}"
                  if len(differences) > 1 else "")
        lines.append(f"| {structure} | {usual['value']:.4f} | {coded['value']:.4f} | "
                     f"{', '.join(f'{d:+.4f}' for d in differences)} | "
                     f"{statistics.mean(differences):+.4f} | {spread} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512, help="blocks are an eighth of it")
    parser.add_argument("--validation-tokens", type=int, default=65536)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", default="1234,1235,1236")
    parser.add_argument("--data", default=os.path.join(study.ROOT, "runs", "quickstart", "data"))
    parser.add_argument("--binary", default=os.path.join(study.ROOT, "build", "filigree"))
    parser.add_argument("--mpirun", default="", help="what starts a run, where anything must")
    parser.add_argument("--out", default=os.path.join(study.ROOT, "runs", "gelu_codes"))
    parser.add_argument("--results", default=os.path.join(study.ROOT, "docs", "results"))
    parser.add_argument("--device", default=f"CPU ({platform.machine()})",
                        help="the records' name of what the runs ran on")
    parser.add_argument("--commit", default="", help="the records' (default: git says it)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--gpus", type=int, default=0, help="that jobs take in turns; 0: not said")
    arguments = parser.parse_args()
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    study.complete(arguments)
    arguments.run_id = f"width{arguments.width}-{arguments.tokens_per_step}x{arguments.steps}-lr{arguments.lr}"
    arguments.out = os.path.join(arguments.out, arguments.run_id)
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.results, exist_ok=True)
    with study.workers(arguments) as pool:
        keys = [(structure, form) for structure in STRUCTURES for form in FORMS]
        records = list(pool.map(lambda key: record(arguments, *key, losses(arguments, *key)), keys))
    for name, text in (("gelu_codes.json", json.dumps(records, indent=1) + "\n"),
                       ("gelu_codes.md", table(records))):
        with open(os.path.join(arguments.results, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
