"""Llama and GPT-2 as their papers and config.json define them, in plain Python and double precision.

Reads an exported directory by the specifications of safetensors and of Hugging Face's configs, and
shares no code with Filigree: what it computes is what any other reader of the directory computes.
Slow on purpose; for models of some ten thousand weights.
"""
import json
import math
import os

from filigree_testing import read_safetensors


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def rows_of(tensor):
    """A matrix as a list of rows, a vector as a list."""
    values = tensor.values()
    if len(tensor.shape) == 1:
        return values
    width = tensor.shape[1]
    return [values[i:i + width] for i in range(0, len(values), width)]


def transposed(matrix):
    return [list(column) for column in zip(*matrix)]


def project(weight, x, bias=None):
    """y[o] = sum_i weight[o][i] x[i] + bias[o]; weight is [out, in]."""
    y = [dot(row, x) for row in weight]
    return [a + b for a, b in zip(y, bias)] if bias else y


def add(a, b):
    return [x + y for x, y in zip(a, b)]


def softmax(scores):
    largest = max(scores)
    weights = [math.exp(s - largest) for s in scores]
    total = math.fsum(weights)
    return [w / total for w in weights]


def attend(queries, keys, values, heads, kv_heads, size):
    """Causal attention over positions; head h reads key-value head h // (heads / kv_heads)."""
    out = []
    for t, query in enumerate(queries):
        row = []
        for h in range(heads):
            q = query[h * size:(h + 1) * size]
            at = h // (heads // kv_heads) * size
            seen = range(t + 1)
            weights = softmax([dot(q, keys[s][at:at + size]) / math.sqrt(size) for s in seen])
            row += [math.fsum(weights[s] * values[s][at + e] for s in seen) for e in range(size)]
        out.append(row)
    return out


def rotate(x, position, heads, size, theta):
    """RoPE in the half-rotated convention: element e pairs with e + size / 2 within its head."""
    half, out = size // 2, list(x)
    for h in range(heads):
        for e in range(half):
            angle = position * theta ** (-2.0 * e / size)
            a, b = x[h * size + e], x[h * size + half + e]
            out[h * size + e] = a * math.cos(angle) - b * math.sin(angle)
            out[h * size + half + e] = b * math.cos(angle) + a * math.sin(angle)
    return out


class HfReference:
    """The model in an exported directory; `logits(tokens)` gives one row a position."""

    def __init__(self, directory):
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        with open(os.path.join(directory, "model.safetensors.index.json"), encoding="utf-8") as file:
            names = json.load(file)["weight_map"]
        self.weights = {}
        for name in sorted(set(names.values())):
            tensors, _ = read_safetensors(directory, name)
            self.weights.update({key: rows_of(tensor) for key, tensor in tensors.items()})
        if set(names) != set(self.weights):
            raise AssertionError("the index and the files name different tensors")

    def logits(self, tokens):
        return {"llama": self._llama, "gpt2": self._gpt2}[self.config["model_type"]](tokens)

    def _llama(self, tokens):
        c, w = self.config, self.weights
        heads, kv_heads, size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

        def norm(x, gain):
            scale = 1 / math.sqrt(dot(x, x) / len(x) + c["rms_norm_eps"])
            return [a * scale * g for a, g in zip(x, gain)]

        embedding = w["model.embed_tokens.weight"]
        x = [embedding[token] for token in tokens]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = [norm(a, w[p + "input_layernorm.weight"]) for a in x]
            q, k, v = ([project(w[f"{p}self_attn.{n}_proj.weight"], a) for a in h] for n in "qkv")
            q = [rotate(a, t, heads, size, c["rope_theta"]) for t, a in enumerate(q)]
            k = [rotate(a, t, kv_heads, size, c["rope_theta"]) for t, a in enumerate(k)]
            mixed = attend(q, k, v, heads, kv_heads, size)
            x = [add(a, project(w[p + "self_attn.o_proj.weight"], m)) for a, m in zip(x, mixed)]
            for t, a in enumerate(x):
                h = norm(a, w[p + "post_attention_layernorm.weight"])
                gate = project(w[p + "mlp.gate_proj.weight"], h)
                up = project(w[p + "mlp.up_proj.weight"], h)
                inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)]
                x[t] = add(a, project(w[p + "mlp.down_proj.weight"], inner))
        head = embedding if c["tie_word_embeddings"] else w["lm_head.weight"]
        return [project(head, norm(a, w["model.norm.weight"])) for a in x]

    def _gpt2(self, tokens):
        c, w = self.config, self.weights
        heads, width = c["n_head"], c["n_embd"]

        def norm(x, name):
            mean = math.fsum(x) / len(x)
            centred = [a - mean for a in x]
            scale = 1 / math.sqrt(dot(centred, centred) / len(x) + c["layer_norm_epsilon"])
            return [a * scale * g + b
                    for a, g, b in zip(centred, w[name + ".weight"], w[name + ".bias"])]

        def convolve(x, name):  # Hugging Face's Conv1D: the weight is [in, out]
            return project(columns[name], x, w[name + ".bias"])

        columns = {name.removesuffix(".weight"): transposed(value) for name, value in w.items()
                   if name.endswith(".weight") and ".h." in name and isinstance(value[0], list)}
        x = [add(w["transformer.wte.weight"][token], w["transformer.wpe.weight"][t])
             for t, token in enumerate(tokens)]
        for layer in range(c["n_layer"]):
            p = f"transformer.h.{layer}."
            qkv = [convolve(norm(a, p + "ln_1"), p + "attn.c_attn") for a in x]
            q, k, v = ([a[i * width:(i + 1) * width] for a in qkv] for i in range(3))
            mixed = attend(q, k, v, heads, heads, width // heads)
            x = [add(a, convolve(m, p + "attn.c_proj")) for a, m in zip(x, mixed)]
            for t, a in enumerate(x):
                h = convolve(norm(a, p + "ln_2"), p + "mlp.c_fc")
                h = [0.5 * u * (1 + math.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
                     for u in h]
                x[t] = add(a, convolve(h, p + "mlp.c_proj"))
        return [project(w["transformer.wte.weight"], norm(a, "transformer.ln_f")) for a in x]
