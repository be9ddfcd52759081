#!/usr/bin/env python3
"""Other sparse products of the same shapes, as PyTorch reaches them, for compare_kernels.py.

    python3 tests/bench/peer_kernels.py [--shape 4096x4096,...] [--block 128x128] [--sparsity 50,75,90]
                                        [--tokens 16384] [--repeats 20]

Prints one JSON list with an object a peer and case: {peer, shape, block, sparsity, tokens, product, ms} or,
where PyTorch cannot do it, {..., why}. All in bf16. Peers:
  triton_bsr      torch.sparse_bsr through PyTorch's Triton kernels: forward, and the input gradient from a
                  second, transposed copy of the weight; they have no weight gradient
  cusparse_csr    torch.sparse_csr through cuSPARSE: forward
  cusparselt_2to4 torch.sparse.to_sparse_semi_structured, whatever the sparsity asked for it is at 50: forward
"""
import argparse
import json
import statistics

import torch
from torch.nn import functional as F


def milliseconds(product, repeats):
    for _ in range(5):
        product()
    samples = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        product()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end))
    return statistics.median(samples)


def blocked_weight(out, into, rows, cols, density, generator):
    grid = torch.zeros(out // rows * (into // cols), device="cuda")
    kept = torch.randperm(grid.numel(), generator=generator, device="cuda")
    grid[kept[:round(density * grid.numel())]] = 1
    mask = grid.view(out // rows, into // cols)
    mask = mask.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    weight = torch.randn(out, into, generator=generator, device="cuda", dtype=torch.bfloat16) * 0.02
    return weight * mask.bfloat16()


def two_of_four(out, into):
    weight = torch.randn(out, into, device="cuda", dtype=torch.bfloat16) * 0.02
    mask = torch.tensor([1, 1, 0, 0], device="cuda", dtype=torch.bfloat16)
    return weight * mask.repeat(into // 4)


def products_of(case):
    """(peer, product, function that makes the timed call) of a case."""
    out, into, rows, cols = case["out"], case["in"], case["rows"], case["cols"]
    generator = torch.Generator(device="cuda").manual_seed(1)
    x = torch.randn(case["tokens"], into, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(case["tokens"], out, device="cuda", dtype=torch.bfloat16)
    weight = blocked_weight(out, into, rows, cols, 1 - case["sparsity"] / 100, generator)

    def bsr(matrix, blocksize):
        return matrix.to_sparse_bsr(blocksize)

    def forward_bsr():
        stored = bsr(weight, (rows, cols))
        return lambda: F.linear(x, stored)

    def input_grad_bsr():
        stored = bsr(weight.t().contiguous(), (cols, rows))
        return lambda: F.linear(dy, stored)

    def forward_csr():
        stored, columns = weight.to_sparse_csr(), x.t()
        return lambda: torch.sparse.mm(stored, columns)

    def forward_2to4():
        stored = torch.sparse.to_sparse_semi_structured(two_of_four(out, into))
        return lambda: F.linear(x, stored)

    yield "triton_bsr", "forward", forward_bsr
    yield "triton_bsr", "input_grad", input_grad_bsr
    yield "cusparse_csr", "forward", forward_csr
    if case["sparsity"] == 50:
        torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = False
        yield "cusparselt_2to4", "forward", forward_2to4


def measure(case, repeats):
    for peer, product, make in products_of(case):
        record = {"peer": peer, "product": product, "torch": torch.__version__,
                  "shape": f"{case['out']}x{case['in']}", "block": f"{case['rows']}x{case['cols']}",
                  "sparsity": case["sparsity"], "tokens": case["tokens"]}
        try:
            record["ms"] = milliseconds(make(), repeats)
        except Exception as error:  # whatever a missing library or an unsupported shape raises
            record["why"] = f"{type(error).__name__}: {error}".splitlines()[0]
        yield record


def pair(text):
    return tuple(int(part) for part in text.split("x"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="6144x2048,8192x2048,2048x8192,4096x4096")
    parser.add_argument("--block", default="128x128")
    parser.add_argument("--sparsity", default="50,75,90")
    parser.add_argument("--tokens", default="16384")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    records = []
    for block in options.block.split(","):
        for sparsity in options.sparsity.split(","):
            for tokens in options.tokens.split(","):
                for shape in options.shape.split(","):
                    (out, into), (rows, cols) = pair(shape), pair(block)
                    records += measure({"out": out, "in": into, "rows": rows, "cols": cols,
                                        "sparsity": float(sparsity), "tokens": int(tokens)},
                                       options.repeats)
    print(json.dumps(records))


if __name__ == "__main__":
    main()
