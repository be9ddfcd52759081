#!/usr/bin/env python3
"""Block-sparse products of Filigree beside cuBLAS and, with --peers, other sparse libraries.

    python3 tests/bench/compare_kernels.py [--peers] [--binary build/filigree]
        [--out docs/results/kernels.json --run-id ID --commit C --device NAME] -- [options of bench kernels]

Runs `filigree bench kernels --json` (with cuSPARSE's products among the peers) and peer_kernels.py on the same cases, prints one table, and writes
records (see results_tables.py): one a case and product against the dense product, the slowest shape of
each block and sparsity as .../vs_cublas_dense, and one a peer's product.
"""
import argparse
import datetime
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PEER_OPTIONS = ("--shape", "--block", "--sparsity", "--tokens", "--repeats")


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peer_arguments(arguments):
    chosen = []
    for option, value in zip(arguments, arguments[1:]):
        if option in PEER_OPTIONS:
            chosen += [option, value]
    return chosen


def block_name(block):
    rows, cols = block.split("x")
    return rows if rows == cols else block


def number(value):
    return f"{value:g}"


def family(case):
    name = f"kernels/block{block_name(case['block'])}/{number(case['sparsity'])}"
    return name, ("" if case["layout"] == "random" else "/" + case["layout"]) + (
        "" if case["tokens"] == 16384 else f"/{case['tokens']}_tokens")


def cusparse_peers(case):
    """cuSPARSE's products, which the binary timed itself; None: it has no such product."""
    names = ("cusparse_bsr", "cusparse_csr")
    return [{"peer": name, **({"ms": case[name + "_ms"]} if case[name + "_ms"] else {"why": "none"})}
            for name in names if name + "_ms" in case]


def case_key(record):
    return tuple(record[key] for key in ("shape", "block", "sparsity", "tokens", "product"))


class Records:
    def __init__(self, options):
        self.options, self.all = options, []

    def add(self, name, case, peer_ms, extra):
        settings = {key: case[key] for key in ("shape", "block", "sparsity", "layout", "seed",
                                               "product", "tokens", "equal_ms", "executed_tflops",
                                               "roof_ms", "bound")}
        settings.update(extra, loss_gap="unmeasured")
        self.all.append({
            "name": name, "value": peer_ms / case["ours_ms"], "unit": "ratio",
            "ours_ms": case["ours_ms"], "peer_ms": peer_ms, "samples": case["samples"],
            "run_id": self.options.run_id, "settings": settings, "device": self.options.device,
            "date": datetime.date.today().isoformat(), "commit": self.options.commit,
            "command": " ".join(["python3", "tests/bench/compare_kernels.py", *sys.argv[1:]])})

    def write(self):
        old = []
        if os.path.exists(self.options.out):
            with open(self.options.out, encoding="utf-8") as file:
                old = json.load(file)
        with open(self.options.out, "w", encoding="utf-8") as file:
            json.dump(old + self.all, file, indent=1)


def show(case, peers):
    print(f"{case['shape']:11} {case['block']:8} {case['sparsity']:5g} % {case['tokens']:6} tokens "
          f"{case['product']:11} {case['ours_ms'] * 1e3:9.1f} us {case['executed_tflops']:6.0f} TFLOP/s  "
          f"dense {case['dense_ms'] / case['ours_ms']:5.2f}x  equal {case['equal_ms'] / case['ours_ms']:5.2f}x"
          f"  roof {case['roof_ms'] * 1e3:8.1f} us ({case['bound']})", end="")
    for peer in peers:
        print(f"  {peer['peer']} " + (f"{peer['ms'] / case['ours_ms']:.2f}x" if "ms" in peer
                                      else peer["why"]), end="")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--binary", default="build/filigree")
    parser.add_argument("--out")
    parser.add_argument("--run-id", default="")
    parser.add_argument("--commit", default="")
    parser.add_argument("--device", default="")
    parser.add_argument("arguments", nargs="*", help="after --: options of `filigree bench kernels`")
    options = parser.parse_args()
    cases = run([options.binary, "bench", "kernels", "--json",
                 *(["--peers"] if options.peers else []), *options.arguments])["cases"]
    peers = []
    if options.peers:
        peers = run([sys.executable, os.path.join(HERE, "peer_kernels.py"),
                     *peer_arguments(options.arguments)])
    records, slowest = Records(options), {}
    for case in cases:
        beside = [peer for peer in peers if case_key(peer) == case_key(case)] + cusparse_peers(case)
        show(case, beside)
        name, suffix = family(case)
        records.add(f"{name}/{case['shape']}/{case['product']}{suffix}", case, case["dense_ms"], {})
        if case["product"] == "total":
            ratio = case["dense_ms"] / case["ours_ms"]
            key = f"{name}/vs_cublas_dense{suffix}"
            if key not in slowest or ratio < slowest[key]["dense_ms"] / slowest[key]["ours_ms"]:
                slowest[key] = case
        for peer in beside:
            if "ms" in peer:
                records.add(f"{name}/{case['shape']}/{case['product']}{suffix}/vs_{peer['peer']}", case,
                            peer["ms"], {"peer": f"PyTorch {peer['torch']}, {peer['peer']}"
                                         if "torch" in peer else peer["peer"]})
    for key, case in slowest.items():
        records.add(key, case, case["dense_ms"], {})
    if options.out:
        records.write()


if __name__ == "__main__":
    main()
