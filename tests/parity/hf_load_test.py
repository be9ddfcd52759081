#!/usr/bin/env python3
"""Loads an exported directory with Hugging Face transformers and checks what came out.

    python hf_load_test.py HF_DIR [--logits FILE] [--dtype float32|auto] [--tolerance X]

Checked always: AutoModelForCausalLM finds every parameter and nothing else; the loaded values are
the file's, bit for bit; every cell that filigree_layouts.safetensors says is not stored is zero;
AutoTokenizer loads, its ids are in the vocabulary, and text survives encoding and decoding.

With --logits (safetensors: "tokens" [S], "logits" [S, V], as `filigree eval --logits FILE` writes):
the model's logits for those tokens agree with the file's. Prints the largest absolute difference.

Exit code 0 when all agree, 1 when something differs, 77 where torch, transformers or safetensors is
missing.
"""
import argparse
import json
import os
import sys

try:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer
except ImportError as error:
    print(f"skipped: {error}; pip install torch transformers safetensors sentencepiece")
    sys.exit(77)

TEXTS = [
    "Hello, world!",
    "  two  spaces\n\tand tabs\n",
    "def f(x, y23):\n    return 4567",
    "caf\u00e9 \u4e2d\u6587 \U0001f600",
]
# Relative to the largest logit: rounding of the arithmetic, not of the weights.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 5e-2}

failures = []


def check(condition, message):
    if not condition:
        failures.append(message)
        print("FAIL", message)


def read_tensors(directory):
    with open(os.path.join(directory, "model.safetensors.index.json")) as index:
        files = sorted(set(json.load(index)["weight_map"].values()))
    tensors = {}
    for name in files:
        with safe_open(os.path.join(directory, name), framework="pt") as file:
            tensors.update({key: file.get_tensor(key) for key in file.keys()})
    return tensors


def check_weights(model, tensors):
    state = model.state_dict()
    for name, tensor in tensors.items():
        check(name in state, f"{name} is in the files and not in the model")
        if name in state:
            same = torch.equal(state[name].to(tensor.dtype), tensor)
            check(same, f"{name} differs between file and model")
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = set(state) - set(tensors) - tied
    check(not missing, f"in the model and not in the files: {sorted(missing)}")


def check_layouts(directory, tensors):
    with safe_open(os.path.join(directory, "filigree_layouts.safetensors"), framework="pt") as file:
        metadata = file.metadata()
        names = [key.removesuffix(".mask") for key in file.keys()]
        for name in names:
            layout = json.loads(metadata[name + ".layout"])
            weight = tensors[name]
            check(list(weight.shape) == layout["shape"], f"{name}: the layout has another shape")
            packed = file.get_tensor(name + ".mask")
            bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
            mask = bits.reshape(-1)[: weight.numel()].reshape(weight.shape).bool()
            check(not weight[~mask].any(), f"{name}: cells that are not stored are not zero")
            density = mask.float().mean().item()
            check(abs(density - layout["density"]) < 1e-6, f"{name}: density {density}")
    return len(names)


def check_tokenizer(directory, vocab_size):
    if not os.path.exists(os.path.join(directory, "tokenizer_config.json")):
        return "none"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        check(ids and max(ids) < vocab_size, f"ids of {text!r} are beyond the vocabulary")
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        check(back == text, f"{text!r} came back from the tokenizer as {back!r}")
    check(tokenizer.eos_token_id is not None, "the tokenizer has no end token")
    check(tokenizer.bos_token_id is not None, "the tokenizer has no begin token")
    return type(tokenizer).__name__


def check_logits(model, path, tolerance):
    with safe_open(path, framework="pt") as file:
        tokens, expected = file.get_tensor("tokens"), file.get_tensor("logits")
    with torch.no_grad():
        found = model(tokens.reshape(1, -1).long()).logits[0].float()
    check(found.shape == expected.shape, f"logits {found.shape}, expected {expected.shape}")
    if found.shape != expected.shape:
        return
    scale = max(1.0, expected.abs().max().item())
    limit = (tolerance or TOLERANCES[model.dtype]) * scale
    difference = (found - expected).abs().max().item()
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean().item()
    print(f"logits: {tuple(expected.shape)}, largest {scale:.4g}, "
          f"max abs diff {difference:.3e} (limit {limit:.3e}), same argmax {100 * same:.2f} %")
    check(difference <= limit, f"logits differ by {difference:.3e}, more than {limit:.3e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--logits", help="safetensors with tokens [S] and logits [S, V]")
    parser.add_argument("--dtype", choices=["float32", "auto"], default="float32",
                        help="arithmetic: float32, or what config.json says")
    parser.add_argument("--tolerance", type=float, help="relative to the largest logit")
    args = parser.parse_args()

    model, info = AutoModelForCausalLM.from_pretrained(
        args.directory, dtype=args.dtype, output_loading_info=True)
    model.eval()
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        check(not info.get(key), f"{key}: {info.get(key)}")
    tensors = read_tensors(args.directory)
    check_weights(model, tensors)
    sparse = check_layouts(args.directory, tensors)
    tokenizer = check_tokenizer(args.directory, model.config.vocab_size)
    logits = model(torch.tensor([[1, 2, 3]])).logits
    check(bool(torch.isfinite(logits).all()), "logits are not finite")
    print(f"{type(model).__name__}: {len(tensors)} tensors, {sparse} sparse, tokenizer {tokenizer}")
    if args.logits:
        check_logits(model, args.logits, args.tolerance)
    print("FAILED" if failures else "ok")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
