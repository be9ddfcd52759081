"""SLTrain written from its equations in NumPy float64: what tests/unit/sltrain_parity_test.cc compares with.

Nothing here is shared with Filigree: own initial values, index draws, model, gradients by hand, AdamW.
A llama of two layers (RMSNorm, rotate-half RoPE, SwiGLU, causal softmax attention, untied head) whose
seven linears a layer are W = alpha / r * B A + scatter(V) (arXiv 2406.02214, section 3), trained for 50
steps on one document a row with its padding masked. Optimizer: Adam as in torch.optim.AdamW with decay 0.

    python3 tests/parity/sltrain_reference.py tests/parity/golden/sltrain.safetensors
    python3 tests/parity/sltrain_reference.py --check    # the gradients against finite differences

The fixture holds initial values, indices, every step's tokens, targets and learning rate, and losses.
"""
import sys

import numpy as np

from safetensors_file import save

L, D, H, E, F, V, S = 2, 16, 4, 4, 24, 32, 12
RANK, ALPHA, DENSITY = 4, 8, 0.1
ROWS, STEPS, LR, WARMUP = 8, 50, 3e-2, 5
BETA1, BETA2, EPSILON, NORM_EPSILON, THETA = 0.9, 0.999, 1e-8, 1e-6, 10000.0
LINEARS = {"attention.q": (D, D), "attention.k": (D, D), "attention.v": (D, D), "attention.o": (D, D),
           "mlp.gate": (F, D), "mlp.up": (F, D), "mlp.down": (D, F)}


def initial(rng):
    """Parameters by name (V as NAME.weight, its values alone) and flat indices by NAME."""
    p, index = {}, {}
    p["embedding.weight"] = rng.normal(0, 0.5, (V, D))
    for i in range(L):
        for norm in ("attention_norm", "mlp_norm"):
            p[f"layers.{i}.{norm}.weight"] = np.ones(D)
        for name, (out, in_) in LINEARS.items():
            name = f"layers.{i}.{name}"
            bound = 1 / np.sqrt(in_)
            index[name] = np.sort(rng.permutation(out * in_)[:int(DENSITY * out * in_)])
            p[name + ".weight"] = rng.uniform(-bound, bound, len(index[name]))
            p[name + ".low_rank_a"] = rng.uniform(-bound, bound, (RANK, in_))
            p[name + ".low_rank_b"] = np.zeros((out, RANK))
    p["final_norm.weight"] = np.ones(D)
    p["head.weight"] = rng.normal(0, 0.3, (V, D))
    return {name: value.astype(np.float32).astype(np.float64) for name, value in p.items()}, index


def documents(rng):
    """[ROWS, S] tokens and targets (-1 where masked): noisy walks over the vocabulary, padded by 0."""
    tokens = np.zeros((ROWS, S), np.int32)
    targets = np.full((ROWS, S), -1, np.int32)
    for row in range(ROWS):
        length = rng.integers(4, S + 2)
        walk = [int(rng.integers(2, V))]
        for _ in range(length - 1):
            walk.append(int((walk[-1] * 5 + 3 + rng.integers(0, 2)) % (V - 2) + 2))
        walk = walk[:S + 1]
        tokens[row, :min(len(walk), S)] = walk[:S]
        targets[row, :len(walk) - 1] = walk[1:]
    return tokens, targets


def weight(p, index, name):
    """W = alpha / r * B A + scatter(V)."""
    w = ALPHA / RANK * p[name + ".low_rank_b"] @ p[name + ".low_rank_a"]
    w.reshape(-1)[index[name]] += p[name + ".weight"]
    return w


def linear_backward(p, g, index, name, x, dy):
    """Adds the gradients of A, B, V; returns that of the input."""
    dense = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    g[name + ".weight"] = dense.reshape(-1)[index[name]]
    g[name + ".low_rank_a"] = ALPHA / RANK * p[name + ".low_rank_b"].T @ dense
    g[name + ".low_rank_b"] = ALPHA / RANK * dense @ p[name + ".low_rank_a"].T
    return dy @ weight(p, index, name)


def norm(x, gain):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + NORM_EPSILON)
    return x * r * gain, r


def norm_backward(x, gain, r, dy):
    dgain = (dy * x * r).reshape(-1, D).sum(0)
    dn = dy * gain
    return r * dn - x * r**3 * (dn * x).mean(-1, keepdims=True), dgain


def rotate(x, sign=1):
    """Rotate-half on [B, S, H, E]."""
    half = E // 2
    angle = np.arange(S)[:, None] * THETA ** (-2 * np.arange(half) / E)
    cos, sin = np.cos(angle)[:, None, :], sign * np.sin(angle)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def heads(x):
    return x.reshape(*x.shape[:2], H, E)


def loss_and_gradients(p, index, tokens, targets):
    """The mean loss over targets that count, and its gradients by name."""
    g, saved = {}, []
    x = p["embedding.weight"][tokens]
    causal = np.triu(np.full((S, S), -np.inf), 1)
    for i in range(L):
        at = f"layers.{i}."
        n1, r1 = norm(x, p[at + "attention_norm.weight"])
        q, k, v = (n1 @ weight(p, index, at + "attention." + c).T for c in "qkv")
        q, k, v = rotate(heads(q)), rotate(heads(k)), heads(v)
        scores = np.einsum("bshe,bthe->bhst", q, k) / np.sqrt(E) + causal
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        mixed = np.einsum("bhst,bthe->bshe", probs, v).reshape(x.shape)
        middle = x + mixed @ weight(p, index, at + "attention.o").T
        n2, r2 = norm(middle, p[at + "mlp_norm.weight"])
        gate, up = (n2 @ weight(p, index, at + "mlp." + c).T for c in ("gate", "up"))
        sigmoid = 1 / (1 + np.exp(-gate))
        hidden = gate * sigmoid * up
        saved.append((x, n1, r1, q, k, v, probs, mixed, middle, n2, r2, gate, up, sigmoid, hidden))
        x = middle + hidden @ weight(p, index, at + "mlp.down").T
    final, r = norm(x, p["final_norm.weight"])
    logits = final @ p["head.weight"].T
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = targets >= 0
    picked = np.take_along_axis(log_probs, np.maximum(targets, 0)[..., None], -1)[..., 0]
    loss = -picked[valid].sum() / valid.sum()

    dlogits = np.exp(log_probs)
    np.put_along_axis(dlogits, np.maximum(targets, 0)[..., None],
                      np.exp(picked)[..., None] - 1, -1)
    dlogits *= valid[..., None] / valid.sum()
    g["head.weight"] = dlogits.reshape(-1, V).T @ final.reshape(-1, D)
    dx, g["final_norm.weight"] = norm_backward(x, p["final_norm.weight"], r,
                                               dlogits @ p["head.weight"])
    for i in reversed(range(L)):
        at = f"layers.{i}."
        x, n1, r1, q, k, v, probs, mixed, middle, n2, r2, gate, up, sigmoid, hidden = saved[i]
        dhidden = linear_backward(p, g, index, at + "mlp.down", hidden, dx)
        dgate = dhidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        dn = linear_backward(p, g, index, at + "mlp.gate", n2, dgate)
        dn += linear_backward(p, g, index, at + "mlp.up", n2, dhidden * gate * sigmoid)
        dmiddle, g[at + "mlp_norm.weight"] = norm_backward(middle, p[at + "mlp_norm.weight"], r2, dn)
        dx = dx + dmiddle
        dmixed = heads(linear_backward(p, g, index, at + "attention.o", mixed, dx))
        dv = np.einsum("bhst,bshe->bthe", probs, dmixed)
        dprobs = np.einsum("bshe,bthe->bhst", dmixed, v)
        dscores = probs * (dprobs - (dprobs * probs).sum(-1, keepdims=True)) / np.sqrt(E)
        dq = rotate(np.einsum("bhst,bthe->bshe", dscores, k), -1)
        dk = rotate(np.einsum("bhst,bshe->bthe", dscores, q), -1)
        dn = sum(linear_backward(p, g, index, at + "attention." + c, n1, d.reshape(x.shape))
                 for c, d in (("q", dq), ("k", dk), ("v", dv)))
        dnorm, g[at + "attention_norm.weight"] = norm_backward(x, p[at + "attention_norm.weight"],
                                                               r1, dn)
        dx = dx + dnorm
    g["embedding.weight"] = np.zeros((V, D))
    np.add.at(g["embedding.weight"], tokens.reshape(-1), dx.reshape(-1, D))
    return loss, g


def learning_rate(step):
    """Linear warm-up, cosine to a tenth."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    t = (step - WARMUP) / (STEPS - WARMUP)
    return LR * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * t)))


def train(p, index, batches):
    """Adam on A, B, V and all dense parameters; the loss of each step before its update."""
    p = {name: value.copy() for name, value in p.items()}
    m = {name: np.zeros_like(value) for name, value in p.items()}
    v = {name: np.zeros_like(value) for name, value in p.items()}
    losses = []
    for step, (tokens, targets) in enumerate(batches):
        loss, g = loss_and_gradients(p, index, tokens, targets)
        losses.append(loss)
        for name in p:
            m[name] = BETA1 * m[name] + (1 - BETA1) * g[name]
            v[name] = BETA2 * v[name] + (1 - BETA2) * g[name] ** 2
            m_hat = m[name] / (1 - BETA1 ** (step + 1))
            v_hat = v[name] / (1 - BETA2 ** (step + 1))
            p[name] -= learning_rate(step) * m_hat / (np.sqrt(v_hat) + EPSILON)
    return losses


def check(p, index, batch, rng):
    """Central differences at three cells of every parameter, away from B = 0."""
    for name in p:
        p[name] = p[name] + rng.normal(0, 0.1, p[name].shape)
    _, g = loss_and_gradients(p, index, *batch)
    for name, value in p.items():
        for cell in rng.integers(0, value.size, 3):
            flat, kept, step = value.reshape(-1), value.reshape(-1)[cell], 1e-5
            flat[cell] = kept + step
            above = loss_and_gradients(p, index, *batch)[0]
            flat[cell] = kept - step
            below = loss_and_gradients(p, index, *batch)[0]
            flat[cell] = kept
            slope, found = (above - below) / (2 * step), g[name].reshape(-1)[cell]
            if abs(slope - found) > 1e-8 + 1e-6 * abs(slope):
                raise SystemExit(f"{name}[{cell}]: {found}, differences give {slope}")
    print(f"gradients of {len(p)} parameters agree with finite differences")


def main():
    rng = np.random.default_rng(2406)
    p, index = initial(rng)
    batches = [documents(rng) for _ in range(STEPS)]
    if sys.argv[1] == "--check":
        return check(p, index, batches[0], rng)
    losses = train(p, index, batches)
    arrays = {name: value.astype(np.float32) for name, value in p.items()}
    arrays.update({name + ".indices": value for name, value in index.items()})
    arrays["tokens"] = np.stack([tokens for tokens, _ in batches])
    arrays["targets"] = np.stack([targets for _, targets in batches])
    arrays["losses"] = np.array(losses)
    arrays["learning_rates"] = np.array([learning_rate(step) for step in range(STEPS)])
    save(sys.argv[1], arrays, {"source": "tests/parity/sltrain_reference.py"})
    print("losses", " ".join(f"{loss:.4f}" for loss in losses))


if __name__ == "__main__":
    main()
