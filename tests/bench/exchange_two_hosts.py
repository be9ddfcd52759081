#!/usr/bin/env python3
"""What sparsity saves between hosts: two GPUs of one machine that pose as two hosts over TCP.

    python3 tests/bench/exchange_two_hosts.py [--binary build/filigree] [--out docs/results/exchange.json]

NCCL is told that the ranks are on different hosts (NCCL_HOSTID) and given sockets over the loopback
interface, so all that crosses ranks crosses a network stack; a bandwidth that no socket has ends the run.
`filigree bench exchange` replays the exchange of GPT-2 124M dense and with 75 and 90 % zeros in blocks of
128; the same with 0 % in blocks is what the sparsified segments are held against, since they travel in
buckets of their own there too. `filigree bench step` then times whole steps, with 1 and 8 accumulated
micro-batches. Prints ratios beside the ratios of bytes and adds records (see results_tables.py) as they
come. About two minutes; what fails is named and left out, and the script then ends with 1.

--override 'parallel { device: CPU }' with a small --config tries it without GPUs, over MPI.
"""
import argparse
import os
import shlex
import sys
import time

import bench_records

HERE = os.path.dirname(os.path.abspath(__file__))
RANKS = 2
# The rank's own variable says which host it poses as.
POSE = 'NCCL_HOSTID=host${OMPI_COMM_WORLD_RANK:-$PMI_RANK} exec "$@"'
NETWORK = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_NET": "Socket", "NCCL_NET_PLUGIN": "none",
           "NCCL_IB_DISABLE": "1", "NCCL_DEBUG": "WARN", "OMPI_ALLOW_RUN_AS_ROOT": "1",
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
VARIANTS = {"dense": None, "blocks of 0 %": 0.0, "75 %": 0.75, "90 %": 0.9}
# No loopback socket comes near, NVLink and shared memory do.
MOST_SOCKET_BYTES_PER_SECOND = 40e9
TIMEOUT_SECONDS = 60


def sparsity(fraction, block):
    if fraction is None:
        return []
    return ["--override", f'sparsity {{ parameterisation: "block_sparse" sparsity: {fraction} '
                          f"block_out: {block} block_in: {block} }}"]


def filigree(options, *words):
    command = [*shlex.split(options.mpirun), str(RANKS), "bash", "-c", POSE, "pose",
               options.binary, "bench", *words, "--json",
               "--override", f"parallel {{ bucket_megabytes: {options.bucket_megabytes} }}"]
    for text in options.override:
        command += ["--override", text]
    return bench_records.result_of(command, NETWORK, TIMEOUT_SECONDS)


def batch(options, micro_batches):
    sequences = options.micro_batch_sequences
    tokens = RANKS * sequences * micro_batches * options.seq_len
    return ["--override", f"batch {{ seq_len: {options.seq_len} tokens_per_step: {tokens} "
                          f"micro_batch_sequences: {sequences} }}"]


def sparsified_bytes(replayed):
    sent = replayed["exchanged_bytes"]
    return sent["sparsified_grads"] + sent["sparsified_values"]


def replay_variant(options, name):
    r = filigree(options, "exchange", options.config, "--steps", str(options.steps),
                 "--warmup", "2", *sparsity(VARIANTS[name], options.block))
    speed = r["fit"]["bandwidth_bytes_per_second"]
    if r["device"] == "cuda" and speed > MOST_SOCKET_BYTES_PER_SECOND:
        raise SystemExit(f"{speed / 1e9:.0f} GB/s between the ranks: NCCL did not take them for two "
                         "hosts, nothing here crosses a network")
    print(f"exchange {name:14} {r['step_ms']:9.2f} ms a step, sparsified alone "
          f"{r['sparsified_ms']:9.2f} ms, {r['exchanged_bytes']['total'] / 1e6:8.1f} MB, link "
          f"{speed / 1e9:.2f} GB/s and {r['fit']['latency_seconds'] * 1e6:.1f} us a hop", flush=True)
    return r


def replay_records(options, name, percent, sparse, dense, zero):
    """A sparse exchange against the dense ones: its sparsified segments, and the whole step's."""
    records = []
    bytes_ratio = sparsified_bytes(zero) / sparsified_bytes(sparse)
    ratio = zero["sparsified_ms"] / sparse["sparsified_ms"]
    target = ", at least 3.5 asked" if percent == 75 else ""
    print(f"{name} sparsified segments: {ratio:.2f}x faster, {bytes_ratio:.2f}x fewer bytes{target}")
    common = {"starts": options.rounds, "block": options.block, "bucket_megabytes": options.bucket_megabytes}
    records.append(bench_records.ratio(
        options, f"exchange/2host_{percent}/sparsified", sparse["sparsified_ms"],
        zero["sparsified_ms"], options.steps, {"bytes_ratio": round(bytes_ratio, 4), **common}))
    bytes_ratio = dense["exchanged_bytes"]["total"] / sparse["exchanged_bytes"]["total"]
    ratio = dense["step_ms"] / sparse["step_ms"]
    print(f"{name} whole step's exchange: {ratio:.2f}x faster, {bytes_ratio:.2f}x fewer bytes: "
          f"{ratio / bytes_ratio:.3f} of the bytes' ratio, at least 0.9 asked", flush=True)
    fit = dense["fit"]
    records.append(bench_records.ratio(
        options, f"exchange/2host_{percent}/step", sparse["step_ms"], dense["step_ms"],
        options.steps,
        {"bytes_ratio": round(bytes_ratio, 4), "of_bytes_ratio": round(ratio / bytes_ratio, 4),
         "link_bytes_per_second": round(fit["bandwidth_bytes_per_second"]),
         "link_latency_us": round(fit["latency_seconds"] * 1e6, 2), **common}))
    return records


def replay(options, keep):
    """Records of the exchange alone. A socket's speed differs from one start to the next: variants take
    turns, and the fastest start of each counts."""
    rounds = [{name: replay_variant(options, name) for name in VARIANTS} for _ in range(options.rounds)]
    found = {}
    for name in VARIANTS:
        fastest = min((r[name] for r in rounds), key=lambda r: r["step_ms"])
        found[name] = {**fastest, "sparsified_ms": min(r[name]["sparsified_ms"] for r in rounds)}
    for name, percent in (("75 %", 75), ("90 %", 90)):
        keep(replay_records(options, name, percent, found[name], found["dense"],
                            found["blocks of 0 %"]))


def train(options, micro_batches, keep):
    """Records of whole training steps."""
    dense_ms = None
    for name, fraction in VARIANTS.items():
        if fraction == 0.0:
            continue
        r = filigree(options, "step", options.config, "--steps", str(options.train_steps),
                     "--warmup", "2", *batch(options, micro_batches),
                     *sparsity(fraction, options.block))
        dense_ms = dense_ms or r["step_ms"]
        exchange = r["exchange"]
        print(f"training step {name:6} accumulation {micro_batches}: {r['step_ms']:9.2f} ms "
              f"({dense_ms / r['step_ms']:.2f}x), {r['exchanged_bytes'] / 1e6:8.1f} MB, "
              f"{100 * exchange['hidden_share']:.0f} % of {exchange['alone_ms']:.2f} ms hidden",
              flush=True)
        label = "dense" if fraction is None else f"{100 * fraction:.0f}"
        settings = {"accumulation": micro_batches, "exchanged_bytes": r["exchanged_bytes"],
                    "exchange_alone_ms": round(exchange["alone_ms"], 3),
                    "hidden_share": round(exchange["hidden_share"], 4),
                    "loss_gap": "none: dense" if fraction is None else "unmeasured"}
        record = bench_records.ratio(
            options, f"exchange/2host_{label}/training_step_accumulation_{micro_batches}",
            r["step_ms"], dense_ms, options.train_steps, settings)
        keep([record if fraction is not None else {**record, "value": dense_ms, "unit": "ms"}])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=os.path.join(HERE, "models", "gpt2_124m.textproto"))
    parser.add_argument("--override", action="append", default=[], help="text format, for all runs")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--mpirun", default="mpirun --bind-to none -np")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--bucket-megabytes", type=float, default=50, help="the same for all")
    parser.add_argument("--rounds", type=int, default=2, help="starts of each replayed exchange")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro-batch-sequences", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="of the replayed exchange")
    parser.add_argument("--train-steps", type=int, default=6, help="whole steps")
    bench_records.add_options(parser)
    options = parser.parse_args()
    names = bench_records.gpus()[:RANKS]
    where = f"{len(names)} x {names[0]}" if names else f"{RANKS} CPU ranks"
    bench_records.complete(options, f"{where}, as two hosts over loopback TCP")
    begin = time.monotonic()

    def keep(records):
        if options.out:
            bench_records.append(options.out, records)

    failures = []
    for part in (lambda: replay(options, keep), lambda: train(options, 1, keep),
                 lambda: train(options, 8, keep)):
        try:
            part()
        except bench_records.Failed as error:
            failures.append(str(error))
            print(f"FAILED: {error}", file=sys.stderr, flush=True)
    print(f"{time.monotonic() - begin:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
