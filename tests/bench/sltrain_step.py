#!/usr/bin/env python3
"""Training steps with sparse plus low-rank weights against our own dense step, on this machine's GPU.

    python3 tests/bench/sltrain_step.py [--models 350m,1b] [--variants unstructured,kept,blocked64,...]
        [--binary build/filigree] [--out docs/results/sltrain.json --run-id ID --commit C]

Runs `filigree bench step` on tests/bench/models/llama_MODEL.textproto, 64 x 256 tokens a step, dense and in
each variant, one after the other and the dense one again at the end (the ratio is to the faster of the
two), prints a table, which says whether W is kept or rebuilt and the peak memory of both, and writes records
(see results_tables.py).

    unstructured   SLTrain as published: 3 % single weights beside rank d/4, W rebuilt for backward
    kept           the same, W kept
    blockedN, blockedNxM   12.5 % blocks of N x M beside rank d/8, factored (widths are whole blocks)
"""
import argparse
import json
import os
import re
import subprocess
import sys

import bench_records

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH = {"350m": 1024, "1b": 2048}
ALPHA = {"350m": 16, "1b": 8}
# The published linear inside a Hugging Face llama, eager, on an H100, at the same shapes and tokens.
REFERENCE_TOKENS_PER_SECOND = {"350m": 104e3, "1b": 18.0e3}


def whole_blocks(model, block):
    """The feed-forward width in whole blocks, the published one rounded up."""
    return -(-{"350m": 2736, "1b": 5461}[model] // block) * block


def override(model, variant):
    if variant == "dense":
        return ""
    common = f'parameterisation: "sparse_plus_low_rank" alpha: {ALPHA[model]}'
    if variant in ("unstructured", "kept"):
        keep = "keep_rebuilt: true" if variant == "kept" else ""
        return f"sparsity {{ {common} sparsity: 0.97 rank: {WIDTH[model] // 4} {keep} }}"
    rows, cols = re.fullmatch(r"blocked(\d+)(?:x(\d+))?", variant).groups()
    cols = cols or rows
    width = whole_blocks(model, max(int(rows), int(cols)))
    return (f"model {{ feed_forward: {width} }} sparsity {{ {common} sparse_part: BLOCKS "
            f"compute: FACTORED sparsity: 0.875 block_out: {rows} block_in: {cols} "
            f"rank: {WIDTH[model] // 8} }}")


def run(options, model, variant):
    path = os.path.join(HERE, "models", f"llama_{model}.textproto")
    command = [options.binary, "bench", "step", path, "--steps", str(options.steps), "--json"]
    text = override(model, variant)
    if text:
        command += ["--override", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{model} {variant}: {done.stderr.strip()}", file=sys.stderr)
        return None
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{model:5} {variant:14} {result['step_ms']:8.2f} ms {result['tokens_per_second']:9.0f} tokens/s "
          f"{result['memory_peak_bytes'] / 1e9:6.2f} GB  loss {result['first_loss']:.2f} -> "
          f"{result['last_loss']:.2f}", flush=True)
    return result


def weight_of(variant):
    """What becomes of the dense weight W."""
    return {"unstructured": "rebuilt for every pass", "kept": "kept for a step"}.get(
        variant, "never built: factored")


def record(options, model, variant, ours, peer_ms, peer, peer_memory):
    kind = variant if variant in ("unstructured", "kept") else f"blocked/{variant[7:]}"
    if variant == "kept":
        kind = "unstructured/kept"
    settings = {"tokens_per_step": ours["tokens_per_step"],
                "tokens_per_second": round(ours["tokens_per_second"]), "weight": weight_of(variant),
                "memory_peak_bytes": ours["memory_peak_bytes"],
                "mfu_executed": round(ours["mfu_executed"], 4), "peer": peer}
    if peer_memory:
        settings["peer_memory_peak_bytes"] = peer_memory
    suffix = "vs_own_dense" if peer_memory else "vs_reference"
    return bench_records.ratio(options, f"sltrain/{model}/{kind}/{suffix}", ours["step_ms"], peer_ms,
                               len(ours["samples"]), settings)


def compare(options, model):
    """Records of one model's variants."""
    variants = options.variants.split(",")
    results = [(v, run(options, model, v)) for v in ["dense", *variants, "dense"]]
    dense = min((r for v, r in results if v == "dense" and r), key=lambda r: r["step_ms"])
    records = []
    for variant, ours in results:
        if variant == "dense" or ours is None:
            continue
        print(f"{model:5} {variant:14} {dense['step_ms'] / ours['step_ms']:5.2f}x our dense, W "
              f"{weight_of(variant)}, peak {ours['memory_peak_bytes'] / 1e9:.2f} GB of dense's "
              f"{dense['memory_peak_bytes'] / 1e9:.2f}", flush=True)
        records.append(record(options, model, variant, ours, dense["step_ms"],
                              "our own dense step of the same run", dense["memory_peak_bytes"]))
        reference = REFERENCE_TOKENS_PER_SECOND[model]
        records.append(record(options, model, variant, ours,
                              1e3 * ours["tokens_per_step"] / reference,
                              f"SLTrain's linear in a Hugging Face llama, eager, bf16: "
                              f"{reference:.0f} tokens a second on an H100, an earlier run", 0))
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="350m,1b")
    parser.add_argument("--variants", default="unstructured,kept,blocked64,blocked128x64,blocked128")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--steps", type=int, default=10)
    bench_records.add_options(parser)
    options = parser.parse_args()
    bench_records.complete(options, bench_records.gpus()[0])
    for model in options.models.split(","):
        records = compare(options, model)
        if options.out:
            bench_records.append(options.out, records)


if __name__ == "__main__":
    main()
