#!/usr/bin/env python3
"""The peer: the same models, shapes and tokens as `filigree bench step`, in compiled PyTorch.

    python3 tests/bench/peer_torch.py gpt3_xl [--precision bf16,master] [--attention flash,cudnn]
                                      [--steps 20] [--warmup 10] [--json]
    torchrun --standalone --nproc-per-node N tests/bench/peer_torch.py gpt2_124m ...

Models are read from tests/bench/models/*.textproto, so both sides time one description. PyTorch gets
torch.compile, fused AdamW (decay on matrices only), clipping to norm 1, a vocabulary padded to a
multiple of 64 and the better of flash and cuDNN attention. Precisions: `bf16`, everything in bf16 (8
bytes a parameter with gradients); `master`, fp32 parameters, gradients and moments under autocast (16
bytes). Prints a line a combination, the fastest of each precision last.

Under torchrun, every rank takes the model's tokens a step and DistributedDataParallel (DDP) averages the
gradients, in their own dtype, in buckets behind backward, once an accumulation cycle; times are those of
the slowest rank. --device cpu tries all of it without GPUs: fp32, not compiled, over gloo.
"""
import argparse
import contextlib
import json
import math
import os
import re
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

MODELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def read_model(name, overrides=()):
    with open(os.path.join(MODELS, name + ".textproto"), encoding="utf-8") as file:
        text = file.read()
    fields = {key: value for key, value in re.findall(r"(\w+): ([\w.+-]+)", text)}
    fields.update(overrides)
    number = {key: float(value) for key, value in fields.items()
              if re.fullmatch(r"[\d.]+(e[+-]?\d+)?", value)}
    model = {key: int(number[key]) for key in (
        "layers", "width", "heads", "vocab_size", "seq_len", "tokens_per_step",
        "micro_batch_sequences")}
    model["llama"] = fields["family"] == "LLAMA"
    model["feed_forward"] = int(number.get("feed_forward", 4 * model["width"]))
    model["lr"] = number["lr"]
    model["padded_vocab"] = -(-model["vocab_size"] // 64) * 64
    return model


class Attention(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.heads, self.llama, width = m["heads"], m["llama"], m["width"]
        self.qkv = nn.Linear(width, 3 * width, bias=not m["llama"])
        self.out = nn.Linear(width, width, bias=not m["llama"])

    def forward(self, x, rope):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        if self.llama:
            q, k = rotate(q, rope), rotate(k, rope)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


def rotate(x, rope):
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        width, hidden, self.llama = m["width"], m["feed_forward"], m["llama"]
        norm = (lambda: nn.RMSNorm(width, eps=1e-6)) if m["llama"] else (lambda: nn.LayerNorm(width))
        self.norm1, self.norm2, self.attention = norm(), norm(), Attention(m)
        if m["llama"]:
            self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        else:
            self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width, bias=not m["llama"])

    def forward(self, x, rope):
        x = x + self.attention(self.norm1(x), rope)
        h = self.norm2(x)
        if self.llama:
            gate, up = self.gate_up(h).chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(self.up(h), approximate="tanh")
        return x + self.down(h)


class Decoder(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m
        self.embedding = nn.Embedding(m["padded_vocab"], m["width"])
        self.positions = None if m["llama"] else nn.Embedding(m["seq_len"], m["width"])
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["layers"]))
        self.norm = nn.RMSNorm(m["width"], eps=1e-6) if m["llama"] else nn.LayerNorm(m["width"])
        self.head = nn.Linear(m["width"], m["padded_vocab"], bias=False)
        if not m["llama"]:
            self.head.weight = self.embedding.weight
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        half = m["width"] // m["heads"] // 2
        angle = torch.outer(torch.arange(m["seq_len"]).float(),
                            10000.0 ** (-torch.arange(half).float() / half))
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos().to(torch.bfloat16), persistent=False)
        self.register_buffer("sin", angle.sin().to(torch.bfloat16), persistent=False)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    if dist.is_initialized():
        dist.barrier()


def slowest(milliseconds, device):
    """Of all ranks, in each step."""
    if not dist.is_initialized():
        return milliseconds
    times = torch.tensor(milliseconds, device=device)
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return times.tolist()


def distributed(model, device):
    """The model as a rank trains it, and what holds its exchange back while it accumulates."""
    if not dist.is_initialized():
        return model, contextlib.nullcontext
    ids = [device.index] if device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    return ddp, ddp.no_sync


def run(m, precision, attention, steps, warmup, device):
    torch.manual_seed(0)
    torch._dynamo.reset()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = Decoder(m).to(device)
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=m["lr"], betas=(0.9, 0.95), fused=True)
    model, no_sync = distributed(model, device)
    compiled = torch.compile(model) if cuda else model
    shape = (m["micro_batch_sequences"], m["seq_len"])
    accumulation = m["tokens_per_step"] // math.prod(shape)
    batches = [torch.randint(0, m["vocab_size"], (2, *shape), device=device) for _ in range(4)]
    times = []
    with sdpa_kernel([ATTENTION[attention]]) if cuda else contextlib.nullcontext():
        for i in range(warmup + steps):
            synchronize(device)
            begin = time.perf_counter()
            for k in range(accumulation):
                tokens, targets = batches[(i + k) % len(batches)]
                with contextlib.nullcontext() if k + 1 == accumulation else no_sync():
                    with torch.autocast(device.type, torch.bfloat16,
                                        enabled=cuda and precision == "master"):
                        loss = compiled(tokens, targets)
                    (loss / accumulation).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if cuda:
                torch.cuda.synchronize()
            if i >= warmup:
                times.append((time.perf_counter() - begin) * 1e3)
    times = slowest(times, device)
    ms = statistics.median(times)
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return {"ranks": ranks,
            "precision": precision, "attention": attention, "step_ms": ms,
            "tokens_per_second": ranks * m["tokens_per_step"] / ms * 1e3, "samples": times,
            "memory_peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
            "last_loss": loss.item(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "CPU"}


def join_ranks(kind):
    """This rank's device; under torchrun all ranks are joined."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return device


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name in tests/bench/models")
    parser.add_argument("--precision", default="bf16,master")
    parser.add_argument("--attention", default="flash,cudnn")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--override", action="append", default=[],
                        help="KEY=NUMBER of the model's or batch's fields, to try small shapes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = join_ranks(options.device)
    prints = not dist.is_initialized() or dist.get_rank() == 0
    torch.backends.cuda.matmul.allow_tf32 = True
    m = read_model(options.model, dict(text.split("=") for text in options.override))
    results = []
    for precision in options.precision.split(","):
        for attention in options.attention.split(","):
            r = run(m, precision, attention, options.steps, options.warmup, device)
            r["model"] = options.model
            results.append(r)
            if prints and not options.json:
                print(f"{options.model} {precision:6} {attention:5} {r['step_ms']:8.2f} ms "
                      f"{r['tokens_per_second']:9.0f} tokens/s  peak "
                      f"{r['memory_peak_bytes'] / 1e9:.2f} GB", flush=True)
    best = [min((r for r in results if r["precision"] == p), key=lambda r: r["step_ms"])
            for p in options.precision.split(",")]
    if prints and options.json:
        print(json.dumps({"results": results, "best": best}))
    elif prints:
        for r in best:
            print(f"best {r['precision']}: {r['step_ms']:.2f} ms ({r['attention']})")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
