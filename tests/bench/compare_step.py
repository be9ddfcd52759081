#!/usr/bin/env python3
"""Training steps of Filigree and of compiled PyTorch, side by side on this machine's GPU.

    python3 tests/bench/compare_step.py gpt3_xl --variants dense,block128/75,masked/75 \
        [--binary build/filigree] [--out docs/results/step.json --run-id ID --commit C]

Runs `filigree bench step` on tests/bench/models/MODEL.textproto for each variant and peer_torch.py on the
same model, prints a table of medians and ratios, and writes records (see results_tables.py). A
variant is `dense`, `masked/PERCENT` or `blockROWSxCOLS/PERCENT` (`block128` is 128x128), the percentage
being zeros in all attention and feed-forward weights; `@bf16` after it trains in pure bf16 (state and
gradients, stochastic rounding) instead of with an fp32 master, `@recompute` recomputes activations, and
both may follow. The peer of every ratio is PyTorch's faster precision.
"""
import argparse
import json
import os
import re
import subprocess
import sys

import bench_records

HERE = os.path.dirname(os.path.abspath(__file__))


MODES = {"bf16": "optimizer { state_dtype: BF16 } parallel { grad_dtype: BF16 }",
         "recompute": "model { recompute: ACTIVATIONS }"}


def override(variant):
    weights, *modes = variant.split("@")
    return " ".join([sparsity_of(weights), *(MODES[mode] for mode in modes)]).strip()


def sparsity_of(weights):
    if weights == "dense":
        return ""
    kind, percent = weights.split("/")
    sparsity = f"sparsity: {float(percent) / 100}"
    if kind == "masked":
        return f'sparsity {{ parameterisation: "masked" {sparsity} }}'
    rows, cols = re.fullmatch(r"block(\d+)(?:x(\d+))?", kind).groups()
    return (f'sparsity {{ parameterisation: "block_sparse" {sparsity} '
            f"block_out: {rows} block_in: {cols or rows} }}")


def ours(options, variant):
    command = [options.binary, "bench", "step", os.path.join(HERE, "models", options.model + ".textproto"),
               "--steps", str(options.steps), "--json"]
    for text in filter(None, (override(variant), options.override)):
        command += ["--override", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{variant}: {done.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def peer(options):
    command = [sys.executable, os.path.join(HERE, "peer_torch.py"), options.model, "--json",
               "--attention", options.peer_attention,
               "--steps", str(options.steps)]
    if options.peer_precision:
        command += ["--precision", options.peer_precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def name_of(model, variant):
    if variant.split("@")[0] == "dense":
        return f"{variant.replace('dense', 'dense/' + model)}/vs_torch"
    if variant.startswith("masked/"):
        return f"{variant.replace('masked', 'masked/' + model)}/vs_torch_dense"
    return f"step/{model}/{variant}/vs_torch_dense"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--variants", default="dense")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--override", default="", help="text format, for all of ours")
    parser.add_argument("--peer-precision", default="", help="bf16, master or both (default)")
    parser.add_argument("--peer-attention", default="flash,cudnn")
    parser.add_argument("--steps", type=int, default=20)
    bench_records.add_options(parser)
    options = parser.parse_args()
    torch = peer(options)
    fastest = min(torch["best"], key=lambda r: r["step_ms"])
    bench_records.complete(options, fastest["device"])
    for r in torch["best"]:
        print(f"{options.model:10} torch {r['precision']:12} {r['step_ms']:8.2f} ms "
              f"{r['memory_peak_bytes'] / 1e9:6.2f} GB  ({r['attention']} attention)", flush=True)
    for variant in options.variants.split(","):
        r = ours(options, variant)
        if r is None:
            continue
        print(f"{options.model:10} {variant:26} {r['step_ms']:8.2f} ms {r['memory_peak_bytes'] / 1e9:6.2f}"
              f" GB  {fastest['step_ms'] / r['step_ms']:5.2f}x  loss {r['first_loss']:.2f} -> "
              f"{r['last_loss']:.2f}", flush=True)
        settings = {"tokens_per_step": r["tokens_per_step"],
                    "tokens_per_second": round(r["tokens_per_second"]),
                    "memory_peak_bytes": r["memory_peak_bytes"],
                    "peer": f"PyTorch {fastest['torch']}, {fastest['precision']}, "
                            f"{fastest['attention']} attention",
                    "peer_memory_peak_bytes": {p["precision"]: p["memory_peak_bytes"]
                                               for p in torch["best"]},
                    "mfu_executed": round(r["mfu_executed"], 4)}
        if variant.split("@")[0] != "dense":
            settings["loss_gap"] = "unmeasured"
        record = bench_records.ratio(options, name_of(options.model, variant), r["step_ms"],
                                     fastest["step_ms"], len(r["samples"]), settings)
        if options.out:
            bench_records.append(options.out, [record])


if __name__ == "__main__":
    main()
