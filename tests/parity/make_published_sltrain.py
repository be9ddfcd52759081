"""Runs the published SLTrain (github.com/andyjm3/SLTrain) and keeps what it did as a fixture.

    git clone https://github.com/andyjm3/SLTrain && git -C SLTrain checkout 2335d62
    pip install torch==2.15.0 transformers==4.46.3 ninja
    pip install --no-build-isolation ./SLTrain/sparse-lora
    python3 tests/parity/make_published_sltrain.py SLTrain tests/parity/golden/sltrain_published

Only this script imports it; tests/parity/published_sltrain.h reads what the script leaves in the directory:

    model.safetensors, config.json, splora_config.json   the initial model, as its own code saves it
    run.safetensors     input_ids [steps, rows, length], learning_rates, and the losses of all steps
                        in three precisions from the same weights: losses_f64, losses_f32, losses_bf16
    conditions.json     all that the losses depend on, and what of the published code they avoid

How far its single precision is from its double precision, and its bf16 from that, is the noise that
an independent implementation is allowed.
"""
import json
import os
import subprocess
import sys

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
MODEL = {"hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 2,
         "num_hidden_layers": 3, "vocab_size": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
         "initializer_range": 0.02, "pad_token_id": -1, "bos_token_id": 0, "eos_token_id": 1}
# Rank d / 4 and alpha / r = 0.25, as published at 60M (512, 128, 32).
SLTRAIN = {"r": 32, "lora_alpha": 8, "sp_ratio": 0.03, "lora_dropout": 0.0,
           "trainable_scaling": False, "target_modules": ["attn", "mlp", "attention"]}
LENGTH, ROWS, STEPS, WARMUP = 64, 8, 50, 5
LR, MIN_LR_RATIO, SEED = 3e-3, 0.1, 42
PADDING, END_OF_TEXT = 0, 1
PRECISIONS = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
CONDITIONS = [
    "a row is one document, cut at 63 bytes, its end of text, and padding (id 0)",
    "padding is masked in the labels only: attention is causal and ignores the padding mask",
    "a row of 64 ids has 63 targets, the last position has none",
    "a step is one micro-batch: under accumulation it averages the micro-batches' means instead",
    "the scheduler starts at step 0 of the warm-up: the first update has a learning rate of 0 but "
    "counts in AdamW's bias correction",
    "one learning rate for A, B, S and the dense rest; alpha / r multiplies A, and by the chain rule "
    "its gradient",
    "no linear has a bias; linears with attn, mlp or attention in their name are wrapped; embedding, "
    "head and norms are dense",
    "pad_token_id -1 makes the embedding's last row its padding row: zero and never trained; no "
    "document has that id",
    "initial weights are drawn in bf16; the other precisions start from the same numbers",
    "in bf16 all is bf16: weights, gradients, moments, logits and the printed loss itself",
]


def documents():
    """[STEPS, ROWS, LENGTH] byte ids: pieces of 12 to 101 bytes of the license, one a row."""
    with open(os.path.join(ROOT, "LICENSE"), "rb") as file:
        text = b" ".join(file.read().split())
    ids = np.full((STEPS * ROWS, LENGTH), PADDING, np.int32)
    start = 0
    for row, size in zip(ids, np.random.default_rng(SEED).integers(12, 102, STEPS * ROWS)):
        start %= len(text) - 102
        piece = list(text[start:start + size][:LENGTH - 1]) + [END_OF_TEXT]
        row[:len(piece)] = piece
        start += int(size)
    return ids.reshape(STEPS, ROWS, LENGTH)


def build(dtype):
    from peft_pretraining.modeling_llama import LlamaForCausalLM
    from splora import SpLoRaModel
    llama = LlamaForCausalLM(transformers.LlamaConfig(**MODEL)).to(dtype)
    return SpLoRaModel(llama, **SLTRAIN).to(dtype)


def train(dtype, initial, batches):
    """Losses and learning rates of all steps; `initial` by name."""
    from peft_pretraining.training_utils import get_scheculer
    model = build(dtype)
    own = model.wrapped_model.state_dict()
    for name, value in initial.items():
        own[name].copy_(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    scheduler = get_scheculer(optimizer, scheduler_type="cosine", num_training_steps=STEPS,
                              warmup_steps=WARMUP, min_lr_ratio=MIN_LR_RATIO)
    losses, rates = [], []
    for batch in torch.tensor(batches, dtype=torch.long):
        labels = torch.where(batch == PADDING, -100, batch)
        loss = model(input_ids=batch, attention_mask=(batch != PADDING).long(), labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses, rates


def main():
    checkout, out = sys.argv[1:]
    sys.path.insert(0, checkout)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = build(torch.bfloat16)
    # Newer transformers refuse to save the -1 of the published configs.
    model.wrapped_model.generation_config.pad_token_id = None
    os.makedirs(out, exist_ok=True)
    model.save_pretrained(out)
    os.remove(os.path.join(out, "generation_config.json"))
    # Rotary frequencies are a constant, which each precision computes for itself.
    initial = {name: value.clone() for name, value in model.wrapped_model.state_dict().items()
               if not name.endswith("inv_freq")}
    batches = documents()
    arrays = {"input_ids": batches}
    for name, dtype in PRECISIONS.items():
        losses, rates = train(dtype, initial, batches)
        arrays["losses_" + name], arrays["learning_rates"] = np.array(losses), np.array(rates)
        noise = np.abs(arrays["losses_" + name] / arrays["losses_f64"] - 1)
        print(f"{name}: {losses[0]:.4f} -> {losses[-1]:.4f}; from double precision at most "
              f"{noise.max():.1e}, on average {noise.mean():.1e}")
    save_file(arrays, os.path.join(out, "run.safetensors"))
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, text=True,
                            capture_output=True).stdout.strip()
    with open(os.path.join(out, "conditions.json"), "w", encoding="utf-8") as file:
        json.dump({"source": "github.com/andyjm3/SLTrain", "commit": commit,
                   "torch": torch.__version__, "transformers": transformers.__version__,
                   "device": "CPU, one thread", "seed": SEED, "model": MODEL, "sltrain": SLTRAIN,
                   "optimizer": "torch.optim.AdamW, betas 0.9 and 0.999, epsilon 1e-8, weight decay 0, "
                                "no clipping",
                   "schedule": {"lr": LR, "warmup_steps": WARMUP, "steps": STEPS,
                                "min_lr_ratio": MIN_LR_RATIO, "shape": "cosine"},
                   "batch": {"rows": ROWS, "length": LENGTH, "accumulation": 1},
                   "text": "pieces of 12 to 101 bytes of this repository's LICENSE, as byte ids",
                   "conditions": CONDITIONS}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
