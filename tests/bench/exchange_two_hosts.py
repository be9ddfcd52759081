#!/usr/bin/env python3
"""What sparsity saves between hosts: two GPUs of one machine that pose as two hosts over TCP.

    python3 tests/bench/exchange_two_hosts.py [--binary build/filigree] \
        [--out docs/results/exchange.json --run-id ID --commit C --device "2 x H100, ..."]

NCCL is told that the ranks are on different hosts (NCCL_HOSTID) and given sockets over the loopback
interface, so all that crosses ranks crosses a network stack. `filigree bench exchange` replays the
exchange of GPT-2 124M dense and with 75 and 90 % zeros in blocks of 128; the same with 0 % in
blocks is what the sparsified segments are held against, since they travel in buckets of their own
there too. `filigree bench step` then times whole steps, with 1 and 8 accumulated micro-batches. Prints
ratios beside the ratios of bytes and writes records (see results_tables.py). About two minutes.

--override 'parallel { device: CPU }' with a small --config tries it without GPUs, over MPI.
"""
import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
RANKS = 2
# The rank's own variable says which host it poses as.
POSE = 'NCCL_HOSTID=host${OMPI_COMM_WORLD_RANK:-$PMI_RANK} exec "$@"'
NETWORK = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_NET": "Socket", "NCCL_IB_DISABLE": "1",
           "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
VARIANTS = {"dense": None, "blocks of 0 %": 0.0, "75 %": 0.75, "90 %": 0.9}


def sparsity(fraction, block):
    if fraction is None:
        return []
    return ["--override", f'sparsity {{ parameterisation: "block_sparse" sparsity: {fraction} '
                          f"block_out: {block} block_in: {block} }}"]


def filigree(options, *words):
    command = [*shlex.split(options.mpirun), str(RANKS), "bash", "-c", POSE, "pose",
               options.binary, "bench", *words, "--json"]
    for text in options.override:
        command += ["--override", text]
    done = subprocess.run(command, env={**os.environ, **NETWORK}, capture_output=True, text=True,
                          check=False, timeout=170)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def batch(options, micro_batches):
    sequences = options.micro_batch_sequences
    tokens = RANKS * sequences * micro_batches * options.seq_len
    return ["--override", f"batch {{ seq_len: {options.seq_len} tokens_per_step: {tokens} "
                          f"micro_batch_sequences: {sequences} }}"]


def sparsified_bytes(replayed):
    sent = replayed["exchanged_bytes"]
    return sent["sparsified_grads"] + sent["sparsified_values"]


def record(options, name, ours, theirs, settings, unit="ratio"):
    return {"name": name, "value": theirs / ours if unit == "ratio" else ours, "unit": unit,
            "ours_ms": ours, "peer_ms": theirs, "samples": options.steps, "run_id": options.run_id,
            "settings": settings, "device": options.device,
            "date": datetime.date.today().isoformat(), "commit": options.commit,
            "command": shlex.join(["python3", "tests/bench/exchange_two_hosts.py", *sys.argv[1:]])}


def replay(options):
    """Records of the exchange alone."""
    found = {}
    for name, fraction in VARIANTS.items():
        found[name] = filigree(options, "exchange", options.config, "--steps", str(options.steps),
                               *sparsity(fraction, options.block))
        r = found[name]
        print(f"exchange {name:14} {r['step_ms']:9.2f} ms a step, sparsified alone "
              f"{r['sparsified_ms']:9.2f} ms, {r['exchanged_bytes']['total'] / 1e6:8.1f} MB",
              flush=True)
    dense, zero = found["dense"], found["blocks of 0 %"]
    options.device = options.device or f"2 {dense['device']} ranks as two hosts over loopback TCP"
    fit = dense["fit"]
    print(f"link: {fit['bandwidth_bytes_per_second'] / 1e9:.2f} GB/s, "
          f"{fit['latency_seconds'] * 1e6:.1f} us a hop "
          f"(at worst {100 * fit['worst_relative_error']:.0f} % off)")
    records = []
    for name, percent in (("75 %", 75), ("90 %", 90)):
        sparse = found[name]
        bytes_ratio = sparsified_bytes(zero) / sparsified_bytes(sparse)
        ratio = zero["sparsified_ms"] / sparse["sparsified_ms"]
        target = ", at least 3.5 asked" if percent == 75 else ""
        print(f"{name} sparsified segments: {ratio:.2f}x faster, {bytes_ratio:.2f}x fewer bytes"
              f"{target}")
        records.append(record(options, f"exchange/2host_{percent}/sparsified",
                              sparse["sparsified_ms"], zero["sparsified_ms"],
                              {"bytes_ratio": round(bytes_ratio, 4), "block": options.block}))
        bytes_ratio = dense["exchanged_bytes"]["total"] / sparse["exchanged_bytes"]["total"]
        ratio = dense["step_ms"] / sparse["step_ms"]
        print(f"{name} whole step's exchange: {ratio:.2f}x faster, {bytes_ratio:.2f}x fewer bytes: "
              f"{ratio / bytes_ratio:.3f} of the bytes' ratio, at least 0.9 asked")
        records.append(record(options, f"exchange/2host_{percent}/step", sparse["step_ms"],
                              dense["step_ms"],
                              {"bytes_ratio": round(bytes_ratio, 4),
                               "of_bytes_ratio": round(ratio / bytes_ratio, 4),
                               "block": options.block,
                               "link_bytes_per_second": round(fit["bandwidth_bytes_per_second"]),
                               "link_latency_us": round(fit["latency_seconds"] * 1e6, 2)}))
    return records


def steps(options):
    """Records of whole training steps."""
    records = []
    for micro_batches in (1, 8):
        dense_ms = None
        for name, fraction in VARIANTS.items():
            if fraction == 0.0:
                continue
            r = filigree(options, "step", options.config, "--steps", str(options.train_steps),
                         "--warmup", "2", *batch(options, micro_batches),
                         *sparsity(fraction, options.block))
            dense_ms = dense_ms or r["step_ms"]
            print(f"training step {name:6} accumulation {micro_batches}: {r['step_ms']:9.2f} ms "
                  f"({dense_ms / r['step_ms']:.2f}x), {r['exchanged_bytes'] / 1e6:8.1f} MB",
                  flush=True)
            label = "dense" if fraction is None else f"{100 * fraction:.0f}"
            settings = {"accumulation": micro_batches, "exchanged_bytes": r["exchanged_bytes"],
                        "loss_gap": "none: dense" if fraction is None else "unmeasured"}
            entry = record(
                options, f"exchange/2host_{label}/training_step_accumulation_{micro_batches}",
                r["step_ms"], dense_ms, settings, unit="ms" if fraction is None else "ratio")
            entry["samples"] = options.train_steps
            records.append(entry)
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=os.path.join(HERE, "models", "gpt2_124m.textproto"))
    parser.add_argument("--override", action="append", default=[], help="text format, for all runs")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--mpirun", default="mpirun --bind-to none -np")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro-batch-sequences", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of the replayed exchange")
    parser.add_argument("--train-steps", type=int, default=6, help="whole steps")
    parser.add_argument("--device", default="", help="what the records say; default: of the ranks")
    parser.add_argument("--out")
    parser.add_argument("--run-id", default="")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    records = replay(options) + steps(options)
    if options.out:
        old = []
        if os.path.exists(options.out):
            with open(options.out, encoding="utf-8") as file:
                old = json.load(file)
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(old + records, file, indent=1)


if __name__ == "__main__":
    main()
