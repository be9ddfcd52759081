#!/usr/bin/env python3
"""The scaling of training steps over the GPUs of one host, against one of them, beside PyTorch's DDP.

    python3 tests/bench/scaling_series.py --gpus 8 [--models gpt2_124m,gpt3_xl] [--zero 1,0]
        [--variants dense,block128/75,block128+rank/87.5] [--long-run SECONDS] [--out docs/results/scaling_8xh100.json]

For each model and variant: `filigree bench step` on one GPU, then on each of them at once without exchange,
then on all under mpirun, with as many tokens a GPU, once a ZeRO stage. GPUs of one host differ by a per cent or
two, and a step waits for the slowest: records say the efficiency against one GPU, and in their settings every
GPU's own time and the efficiency against the slowest. Prints tokens a second, MFU, how much of the exchange backward and forward hide,
what was exchanged and the efficiency (one GPU's step over all GPUs'), then the same for PyTorch under
torchrun (peer_torch.py), each in the faster precision; adds records as they come (see results_tables.py) and
writes the tables. What fails is named and left out, and the script then ends with 1.

A variant is one of compare_step.py's, or `blockN+rank/PERCENT`: blocks of NxN with so many zeros beside
low-rank factors of an eighth of the width. At the end GPT-2 124M trains for --long-run seconds on 524,288 tokens a
step, llm.c's batch, beside the 140 ms a step that it publishes for 8 H100s. Bars: dense GPT-2 124M 0.97 on 8 GPUs, GPT-3 XL 0.98, sparse ones
no lower.

--device cpu tries all of it on CPU ranks: small shapes, whose times mean nothing (--out is refused).
"""
import argparse
import concurrent.futures
import os
import re
import shlex
import subprocess
import sys
import time

import bench_records
import compare_step

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
SMALL = {"layers": 2, "width": 128, "heads": 4, "vocab_size": 1009, "seq_len": 64,
         "tokens_per_step": 1024, "micro_batch_sequences": 8}
SMALL_BLOCK = 32
LLMC_TOKENS, LLMC_MS = 524288, 140


def field(model, name):
    """A whole number of a model's description."""
    with open(os.path.join(HERE, "models", model + ".textproto"), encoding="utf-8") as file:
        return int(re.search(rf"\b{name}: (\d+)", file.read()).group(1))


def size_of(options, model, name):
    return SMALL[name] if options.device_kind == "cpu" else field(model, name)


def sparsity(options, model, variant):
    found = re.fullmatch(r"block(\d+)\+rank/([\d.]+)", variant)
    if not found:
        text = compare_step.override(variant)
    else:
        text = (f'sparsity {{ parameterisation: "sparse_plus_low_rank" sparse_part: BLOCKS '
                f"sparsity: {float(found[2]) / 100} block_out: {found[1]} block_in: {found[1]} "
                f"rank: {size_of(options, model, 'width') // 8} }}")
    if options.device_kind == "cpu":
        text = re.sub(r"(block_(?:out|in)): \d+", rf"\1: {SMALL_BLOCK}", text)
    return text


def overrides(options, model, variant, gpus, zero_stage):
    tokens = size_of(options, model, "tokens_per_step") * gpus
    batch = f"tokens_per_step: {tokens}"
    texts = [f"parallel {{ zero_stage: {zero_stage} }}"]
    if options.device_kind == "cpu":
        shape = " ".join(f"{name}: {SMALL[name]}" for name in ("layers", "width", "heads",
                                                               "vocab_size"))
        feed_forward = f"feed_forward: {4 * SMALL['width']}"
        texts += [f"model {{ {shape} {feed_forward} }}", "parallel { device: CPU }"]
        batch += " " + " ".join(f"{n}: {SMALL[n]}" for n in ("seq_len", "micro_batch_sequences"))
    texts += [f"batch {{ {batch} }}", sparsity(options, model, variant), *options.override]
    return [word for text in texts if text for word in ("--override", text)]


def ours(options, model, variant, gpus, zero_stage, steps=0, batch=""):
    """Of so many steps (options.steps) and, with `batch`, of another batch."""
    launcher = [*shlex.split(options.mpirun), str(gpus)] if gpus > 1 else []
    command = [*launcher, options.binary, "bench", "step",
               os.path.join(HERE, "models", model + ".textproto"), "--steps", str(steps or options.steps),
               "--json", *overrides(options, model, variant, gpus, zero_stage)]
    command += ["--override", batch] if batch else []
    environment = dict(ROOT, OMP_NUM_THREADS="1") if options.device_kind == "cpu" else ROOT
    return bench_records.result_of(command, environment, options.timeout)


def each_gpu(options, model, variant):
    """Milliseconds a step of every GPU by itself, all at once: their differences, heat and shared power."""
    def on(gpu):
        command = [options.binary, "bench", "step",
                   os.path.join(HERE, "models", model + ".textproto"), "--steps", str(options.steps),
                   "--json", *overrides(options, model, variant, 1, 1)]
        return bench_records.result_of(command, {"CUDA_VISIBLE_DEVICES": str(gpu)},
                                       options.timeout)["step_ms"]
    with concurrent.futures.ThreadPoolExecutor(options.gpus) as pool:
        return list(pool.map(on, range(options.gpus)))


def torch(options, model, gpus):
    """The faster of PyTorch's precisions, or of those that fit."""
    launcher = [sys.executable]
    if gpus > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    command = [*launcher, os.path.join(HERE, "peer_torch.py"), model, "--json", "--steps",
               str(options.steps), "--attention", options.peer_attention]
    if options.device_kind == "cpu":
        command += ["--device", "cpu", "--precision", "master", "--attention", "flash"]
        command += [word for key, value in SMALL.items() for word in ("--override", f"{key}={value}")]
    environment = {"OMP_NUM_THREADS": "1"} if options.device_kind == "cpu" else {}
    found = bench_records.result_of(command, environment, options.timeout)
    return min(found["best"], key=lambda r: r["step_ms"])


def name_of(model, variant, gpus, zero_stage):
    """Names in use keep their form; ZeRO-1 is the default and not named."""
    sparse = "" if variant == "dense" else variant.replace("/", "_") + "/"
    kind = f"dense/{model}" if variant == "dense" else f"exchange/{model}/{sparse[:-1]}"
    suffix = "" if zero_stage == 1 else f"/zero{zero_stage}"
    return f"{kind}/{gpus}gpu_efficiency{suffix}".replace("block128_75", "block75")


def line(text, r, efficiency):
    mfu = f"MFU {100 * r['mfu_executed']:5.1f} %" if "mfu_executed" in r else " " * 11
    exchange = r.get("exchange")
    hidden = ""
    if exchange:
        hidden = (f"  {r['exchanged_bytes'] / 1e6:8.1f} MB, {100 * exchange['hidden_share']:5.1f} % of "
                  f"{exchange['alone_ms']:.2f} ms hidden")
    print(f"{text:46} {r['step_ms']:9.2f} ms {r['tokens_per_second']:10.0f} tokens/s  {mfu}  "
          f"{'' if efficiency is None else format(efficiency, '.3f'):>6}{hidden}", flush=True)


def ours_series(options, model, variant, keep):
    one = ours(options, model, variant, 1, 1)
    line(f"{model} {variant}, one", one, 1)
    apart = each_gpu(options, model, variant) if options.device_kind == "cuda" else [one["step_ms"]]
    print(f"{model} {variant}, each by itself: " + ", ".join(f"{ms:.2f}" for ms in apart) + " ms")
    for zero_stage in options.zero:
        r = ours(options, model, variant, options.gpus, zero_stage)
        line(f"{model} {variant}, {options.gpus}, ZeRO-{zero_stage}", r, one["step_ms"] / r["step_ms"])
        exchange = r["exchange"]
        settings = {
            "efficiency": "peer_ms / ours_ms: one GPU against all, as many tokens a GPU",
            "each_gpu_ms": [round(ms, 3) for ms in apart],
            "efficiency_of_slowest_gpu": round(max(apart) / r["step_ms"], 4),
            "zero_stage": zero_stage, "ranks": r["ranks"], "tokens_per_step": r["tokens_per_step"],
            "tokens_per_second": round(r["tokens_per_second"]),
            "mfu_executed": round(r["mfu_executed"], 4),
            "mfu_dense_equivalent": round(r["mfu_dense_equivalent"], 4),
            "exchanged_bytes": r["exchanged_bytes"],
            "exchange_alone_ms": round(exchange["alone_ms"], 3),
            "exposed_grads_ms": round(exchange["exposed_grads_ms"], 3),
            "exposed_values_ms": round(exchange["exposed_values_ms"], 3),
            "exposed_least_ms": round(exchange["exposed_least_ms"], 3),
            "hidden_share": round(exchange["hidden_share"], 4),
            "memory_peak_bytes": r["memory_peak_bytes"]}
        if variant != "dense":
            settings["loss_gap"] = "unmeasured"
        keep([bench_records.ratio(options, name_of(model, variant, options.gpus, zero_stage),
                                  r["step_ms"], one["step_ms"], options.steps, settings)])


def long_run(options, seconds, keep):
    """As many steps of llm.c's batch as fit; one step of the batch on a CPU, whose shapes are small."""
    model = "gpt2_124m"
    tokens = (LLMC_TOKENS if options.device_kind == "cuda"
              else 2 * options.gpus * size_of(options, model, "tokens_per_step"))
    batch = f"batch {{ tokens_per_step: {tokens} }}"
    probe = ours(options, model, "dense", options.gpus, 1, 5, batch)
    steps = max(5, round(1000 * seconds / probe["step_ms"]))
    r = ours(options, model, "dense", options.gpus, 1, steps, batch)
    line(f"{model} dense, {options.gpus}, {tokens} tokens, {steps} steps", r,
         LLMC_MS / r["step_ms"] if options.gpus == 8 else None)
    settings = {"ranks": r["ranks"], "tokens_per_step": tokens, "zero_stage": 1,
                "tokens_per_second": round(r["tokens_per_second"]),
                "mfu_executed": round(r["mfu_executed"], 4)}
    name = f"long_run/{model}/{options.gpus}gpu"
    if options.gpus == 8:
        settings["peer"] = "llm.c as published, 8 H100s"
        keep([bench_records.ratio(options, name + "/vs_llmc", r["step_ms"], LLMC_MS, steps, settings)])
    else:
        keep([bench_records.measurement(options, name + "/tokens_per_second",
                                        r["tokens_per_second"], "tokens/s", r["step_ms"], steps,
                                        settings)])


def torch_series(options, model, keep):
    one = torch(options, model, 1)
    line(f"{model} PyTorch {one['precision']}, one", one, 1)
    r = torch(options, model, options.gpus)
    line(f"{model} PyTorch {r['precision']}, {options.gpus}, DDP", r, one["step_ms"] / r["step_ms"])
    keep([bench_records.ratio(
        options, f"torch_ddp/{model}/{options.gpus}gpu_efficiency", r["step_ms"], one["step_ms"],
        options.steps, {
            "efficiency": "peer_ms / ours_ms: one GPU against all, both PyTorch's",
            "torch": r["torch"], "precision": r["precision"], "one_gpu_precision": one["precision"],
            "attention": r["attention"], "tokens_per_second": round(r["tokens_per_second"]),
            "memory_peak_bytes": r["memory_peak_bytes"]})])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=0, help="ranks; default: all GPUs, or 2 on a CPU")
    parser.add_argument("--device-kind", "--device", dest="device_kind", default="cuda",
                        choices=("cuda", "cpu"))
    parser.add_argument("--models", default="gpt2_124m,gpt3_xl")
    parser.add_argument("--variants", default="dense,block128/75,block128+rank/87.5")
    parser.add_argument("--zero", default="1,0", help="stages")
    parser.add_argument("--override", action="append", default=[], help="text format, for all of ours")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--mpirun", default="mpirun --bind-to none -np")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--long-run", type=float, default=None, metavar="SECONDS",
                        help="of GPT-2 124M at llm.c's batch; default: 600 on 8 GPUs, else none")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a run, the long one's apart")
    parser.add_argument("--peer", default="ddp", choices=("ddp", "none"))
    parser.add_argument("--peer-attention", default="flash,cudnn")
    parser.add_argument("--out", help="a file of records, which are added to those it has")
    parser.add_argument("--run-id", default="", help="default: date, time and commit")
    parser.add_argument("--commit", default="", help="default: git's")
    options = parser.parse_args()
    if options.out and options.device_kind == "cpu":
        parser.error("times of small shapes on a CPU are no results; leave --out away")
    names = bench_records.gpus() if options.device_kind == "cuda" else []
    options.gpus = options.gpus or len(names) or 2
    if options.device_kind == "cuda" and len(names) < options.gpus:
        parser.error(f"--gpus {options.gpus}: {len(names)} here; --device cpu tries the script without")
    options.zero = [int(stage) for stage in options.zero.split(",")]
    options.device = ""
    bench_records.complete(options, f"{options.gpus} x {names[0]}" if names else "CPU")
    begin = time.monotonic()
    failures = []

    def attempt(series, *words):
        def keep(records):
            if options.out:
                bench_records.append(options.out, records)
        try:
            series(options, *words, keep)
        except bench_records.Failed as error:
            failures.append(words)
            print(f"FAILED: {error}", file=sys.stderr, flush=True)

    for model in options.models.split(","):
        for variant in options.variants.split(","):
            attempt(ours_series, model, variant)
        if options.peer == "ddp":
            attempt(torch_series, model)
    if options.long_run is None:
        options.long_run = 600 if options.gpus == 8 and options.device_kind == "cuda" else 0
    if options.long_run > 0:
        options.timeout += 2 * options.long_run
        attempt(long_run, options.long_run)
    if options.out:
        subprocess.run([sys.executable, os.path.join(HERE, "results_tables.py")], check=True)
    print(f"{time.monotonic() - begin:.0f} s; failed: {failures or 'nothing'}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
