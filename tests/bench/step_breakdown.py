#!/usr/bin/env python3
"""Where the milliseconds of a training step go, by kernel, from a trace of what the GPU ran.

    CUDA_INJECTION64_PATH=$PWD/build/libfiligree_kernel_trace.so FILIGREE_TRACE_FILE=trace.csv \\
        build/filigree bench step tests/bench/models/gpt3_xl.textproto --steps 10
    python3 tests/bench/step_breakdown.py trace.csv [--steps 5] [--kernels 40] [--json]

A step reaches from one cross-entropy kernel to the next (divide by --micro-batches where a step has
several). Kernels that run at the same time are counted each in full, in `busy`; `gap` is the time in
which none ran. NCCL's kernels are also split into the time in which some other kernel ran beside them
(hidden) and the rest (exposed).
"""
import argparse
import collections
import csv
import json
import re
import subprocess

CLASSES = (
    ("exchange", r"nccl"),
    ("attention", r"cudnn|fmha|flash|Attention"),
    ("sparse products", r"Spmm|Sddmm"),
    ("dense products", r"gemm|nvjet|cutlass|splitK|cublas"),
    ("cross-entropy", r"CrossEntropy|Distillation"),
    ("norms", r"Norm|GainPartials"),
    ("bias and column sums", r"ColumnSum|SumPartials"),
    ("optimizer", r"AdamW|SumOfSquares|ClipScale"),
    ("embedding", r"Embedding|Runs|Positions|RadixSort"),
    ("rope", r"Rope"),
    ("copies and zeroing", r"memcpy|memset|Gather|Scatter"),
)


def read(path):
    with open(path, encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file)]
    names = sorted({r["name"] for r in rows})
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                           check=True).stdout.splitlines()
    plain = dict(zip(names, plain))
    events = [(int(r["start_ns"]), int(r["end_ns"]), plain[r["name"]]) for r in rows]
    return sorted(events)


def short(name):
    name = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "")
    return name.replace("filigree::", "").replace("cuda::", "")[:110]


def class_of(name):
    return next((label for label, pattern in CLASSES if re.search(pattern, name)), "element-wise and other")


def union(intervals):
    merged = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def length(intervals):
    return sum(end - begin for begin, end in intervals)


def overlap(a, b):
    total, i, j = 0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace")
    parser.add_argument("--steps", type=int, default=5, help="the last so many")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--kernels", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    events = read(options.trace)
    marks = [begin for begin, _, name in events if "CrossEntropyKernel" in name]
    wanted = options.steps * options.micro_batches
    if len(marks) <= wanted:
        raise SystemExit(f"{options.trace}: {len(marks)} cross-entropy kernels, {wanted + 1} needed; "
                         "trace more steps or lower --steps")
    first, last = marks[-wanted - 1], marks[-1]
    events = [e for e in events if first <= e[0] < last]
    scale = 1e-6 / options.steps
    exchange = union((b, e) for b, e, n in events if class_of(n) == "exchange")
    compute = union((b, e) for b, e, n in events if class_of(n) != "exchange")
    by_class, by_kernel = collections.Counter(), collections.defaultdict(lambda: [0, 0])
    for begin, end, name in events:
        by_class[class_of(name)] += end - begin
        by_kernel[short(name)][0] += end - begin
        by_kernel[short(name)][1] += 1
    result = {"step_ms": (last - first) * scale,
              "gap_ms": (last - first - length(union(map(tuple, exchange + compute)))) * scale,
              "exchange_ms": length(exchange) * scale,
              "exchange_hidden_ms": overlap(exchange, compute) * scale,
              "classes_ms": {k: v * scale for k, v in by_class.most_common()},
              "kernels": [{"name": k, "ms": v[0] * scale, "launches": v[1] / options.steps}
                          for k, v in sorted(by_kernel.items(), key=lambda i: -i[1][0])]}
    if options.json:
        print(json.dumps(result))
        return
    print(f"step {result['step_ms']:.2f} ms, gaps {result['gap_ms']:.2f} ms, exchange "
          f"{result['exchange_ms']:.2f} ms of which hidden {result['exchange_hidden_ms']:.2f} ms")
    for label, ms in result["classes_ms"].items():
        print(f"  {ms:8.2f} ms  {label}")
    for kernel in result["kernels"][:options.kernels]:
        print(f"  {kernel['ms']:8.3f} ms {kernel['launches']:6.1f}x  {kernel['name']}")


if __name__ == "__main__":
    main()
