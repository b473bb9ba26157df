"""Trains the base from nothing on the sampled texts: Muon for the matrices, AdamW for the rest, the rate falling to nothing over the time given.

Each text stands alone as `<s> text </s>`; a batch holds texts of like length. The text files are read again when they change, so
training can begin while sampling goes on. In the last part the linears are seen as their NF4 files will read.
"""

import argparse
import json
import math
import os
import time
import zlib

import torch
from torch import nn
from torch.nn import functional as F

from export import fake


class Base(nn.Module):
    """Mistral's architecture with transformers' tensor names; the head is the embedding."""

    def __init__(self, shape):
        super().__init__()
        self.heads, self.kv, self.eps = shape["num_attention_heads"], shape["num_key_value_heads"], shape["rms_norm_eps"]
        d, f, self.dim = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
        w = {"model.embed_tokens.weight": torch.randn(shape["vocab_size"], d) * 0.02, "model.norm.weight": torch.ones(d)}
        for i in range(shape["num_hidden_layers"]):
            at = f"model.layers.{i}."
            sizes = {"self_attn.q_proj": (self.heads * self.dim, d), "self_attn.k_proj": (self.kv * self.dim, d), "self_attn.v_proj": (self.kv * self.dim, d),
                     "self_attn.o_proj": (d, self.heads * self.dim), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
            for name, (o, n) in sizes.items():
                w[f"{at}{name}.weight"] = torch.randn(o, n) * n**-0.5 * (0.3 if name.endswith(("o_proj", "down_proj")) else 1.0)
            w[at + "input_layernorm.weight"], w[at + "post_attention_layernorm.weight"] = torch.ones(d), torch.ones(d)
        self.names = list(w)
        self.w = nn.ParameterDict({k.replace(".", "/"): nn.Parameter(v) for k, v in w.items()})
        self.layers = shape["num_hidden_layers"]
        angle = torch.arange(1024).float()[:, None] * (shape["rope_theta"] ** (-torch.arange(0, self.dim, 2).float() / self.dim))
        for name, f in (("cos", angle.cos()), ("sin", angle.sin())):
            self.register_buffer(name, torch.cat([f, f], 1), persistent=False)
        self.quantised = False

    def forward(self, ids, labels):
        w = {k: self.w[k.replace(".", "/")] for k in self.names}
        if self.quantised:
            w = {k: fake(v) if "_proj." in k else v for k, v in w.items()}
        b, t = ids.shape
        cos, sin = self.cos[:t], self.sin[:t]

        def turn(x):
            half = self.dim // 2
            return (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin).to(torch.bfloat16)

        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(self.layers):
            g = {k.removeprefix(f"model.layers.{i}.").split(".")[-2]: v for k, v in w.items() if k.startswith(f"model.layers.{i}.")}
            n = F.rms_norm(x, x.shape[-1:], g["input_layernorm"], self.eps)
            q, k, v = (F.linear(n, g[p]).view(b, t, -1, self.dim).transpose(1, 2) for p in ("q_proj", "k_proj", "v_proj"))
            k, v = (z.repeat_interleave(self.heads // self.kv, 1) for z in (turn(k), v.to(torch.bfloat16)))
            o = F.scaled_dot_product_attention(turn(q), k, v, is_causal=True)
            x = x + F.linear(o.transpose(1, 2).reshape(b, t, -1), g["o_proj"])
            n = F.rms_norm(x, x.shape[-1:], g["post_attention_layernorm"], self.eps)
            x = x + F.linear(F.silu(F.linear(n, g["gate_proj"])) * F.linear(n, g["up_proj"]), g["down_proj"])
        x = F.rms_norm(x, x.shape[-1:], w["model.norm.weight"], self.eps)
        keep = labels.view(-1) >= 0
        z = F.linear(x.reshape(b * t, -1)[keep], w["model.embed_tokens.weight"])
        return F.cross_entropy(z.float(), labels.view(-1)[keep])

    def state(self):
        return {k: self.w[k.replace(".", "/")].detach().cpu() for k in self.names}


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal by five Newton-Schulz rounds (Jordan et al. 2024); the step's RMS does not depend on the shape."""

    def __init__(self, params, lr, momentum=0.95, decay=0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for shape, ps in alike.items():  # matrices of one shape in one batch: a tenth of the launches
                grads = [p.grad for p in ps]
                buffers = [self.state[p].setdefault("buffer", torch.zeros_like(p)) for p in ps]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                g = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
                tall = shape[0] > shape[1]
                x = (g.mT if tall else g).to(torch.bfloat16)
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = (x.mT if tall else x).float()
                torch._foreach_mul_(ps, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(ps, list(x.unbind()), alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)


def is_held(text):
    return zlib.crc32(text.encode()) % 64 == 0


class Texts:
    """Yields batches of token ids without end, each pass in a new order; reads a file again once it has changed."""

    def __init__(self, paths, tokenizer, tokens, seed, most=1024):
        self.paths, self.tokenizer, self.tokens, self.most = paths, tokenizer, tokens, most
        self.generator = torch.Generator().manual_seed(seed)
        self.stamp, self.rows, self.held = None, [], []

    def refresh(self):
        stamp = [os.path.getmtime(p) for p in self.paths]
        if stamp == self.stamp:
            return
        self.stamp, texts = stamp, [json.loads(line)["text"] for p in self.paths for line in open(p)]
        self.held = [t for t in texts if is_held(t)]
        rows = self.tokenizer.encode_batch([t for t in texts if not is_held(t)])
        self.rows = [r.ids + [2] for r in rows if len(r.ids) < self.most]
        print(f"{len(self.rows)} texts, {sum(map(len, self.rows))} tokens, {len(self.held)} held out", flush=True)

    def __iter__(self):
        while True:
            self.refresh()
            order = torch.randperm(len(self.rows), generator=self.generator).tolist()
            noise = torch.rand(len(order), generator=self.generator).tolist()
            order = [i for _, i in sorted(zip((len(self.rows[i]) * (0.9 + 0.2 * r) for i, r in zip(order, noise)), order))]
            batches, now, longest = [], [], 0
            for i in order:
                longest = max(longest, len(self.rows[i]))
                if now and longest * (len(now) + 1) > self.tokens:
                    batches.append(now)
                    now, longest = [], len(self.rows[i])
                now.append(i)
            batches.append(now)
            for n in torch.randperm(len(batches), generator=self.generator).tolist():
                yield collate([self.rows[i] for i in batches[n]])


def collate(rows):
    longest = -(-max(map(len, rows)) // 16) * 16  # few lengths
    ids = torch.full((len(rows), longest), 2)
    labels = torch.full((len(rows), longest), -100)
    for i, r in enumerate(rows):
        ids[i, :len(r)] = torch.tensor(r)
        labels[i, :len(r) - 1] = torch.tensor(r[1:])
    return ids, labels


def measure(model, held, tokenizer, device, batch=32):
    """Returns the mean loss per held-out token, </s> among them."""
    total, count = 0.0, 0
    held = sorted((tokenizer.encode(t).ids + [2] for t in held), key=len)
    with torch.no_grad():
        for i in range(0, len(held), batch):
            ids, labels = collate(held[i:i + batch])
            with torch.autocast(device, torch.bfloat16):
                n = (labels >= 0).sum().item()
                total, count = total + model(ids.to(device), labels.to(device)).item() * n, count + n
    return total / max(1, count)


def main():
    from tokenizers import Tokenizer

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", nargs="+", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True, help="checkpoint; gone on from when it exists")
    p.add_argument("--held-out", required=True, help="where to write the texts kept from training")
    p.add_argument("--seconds", type=float, required=True, help="training time in all, over which the rate falls to nothing")
    p.add_argument("--until", type=float, default=0, help="end at this Unix time instead, whatever --seconds says")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--batch", type=int, default=4096, help="tokens of one step")
    p.add_argument("--matrix-rate", type=float, default=0.02)
    p.add_argument("--rate", type=float, default=4e-3)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--ffn", type=int, default=704)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--kv", type=int, default=4)
    p.add_argument("--quantise-from", type=float, default=0.85, help="share of the time after which the linears are seen in NF4")
    p.add_argument("--save-every", type=float, default=120)
    a = p.parse_args()
    if a.device == "cpu":
        torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    tokenizer = Tokenizer.from_file(a.tokenizer)
    shape = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": a.hidden, "intermediate_size": a.ffn, "num_hidden_layers": a.layers,
             "num_attention_heads": a.heads, "num_key_value_heads": a.kv, "head_dim": a.hidden // a.heads, "rms_norm_eps": 1e-5,
             "rope_theta": 10000.0, "sliding_window": None, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    model = Base(shape)
    steps = tokens = 0
    spent, matrices, rest = 0.0, None, None
    model.to(a.device)
    named = list(model.w.items())
    matrices = Muon([v for k, v in named if "_proj" in k], a.matrix_rate)
    rest = torch.optim.AdamW([v for k, v in named if "_proj" not in k], a.rate, betas=(0.9, 0.98), weight_decay=0.01)
    if os.path.exists(a.out):
        c = torch.load(a.out, map_location=a.device, weights_only=True)
        model.w.load_state_dict({k.replace(".", "/"): v for k, v in c["model"].items()})
        matrices.load_state_dict(c["matrices"])
        rest.load_state_dict(c["rest"])
        steps, tokens, spent = c["steps"], c["tokens"], c["spent"]
        print(f"going on from step {steps}, {tokens} tokens, {spent:.0f} s")

    def save():
        torch.save({"model": model.state(), "shape": shape, "matrices": matrices.state_dict(), "rest": rest.state_dict(), "steps": steps,
                    "tokens": tokens, "spent": spent}, a.out + ".new")
        os.replace(a.out + ".new", a.out)

    data = Texts(a.text, tokenizer, a.batch, a.seed + steps)
    saved, before, last = time.time(), time.time(), []
    for ids, labels in data:
        whole = spent + (a.until - before) if a.until else a.seconds
        progress = min(1.0, spent / whole)
        factor = min(1.0, (steps + 1) / 30) * min(1.0, (1.0 - progress) / 0.7)  # level, then linear to nothing
        for optimizer, rate in ((matrices, a.matrix_rate), (rest, a.rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        model.quantised = progress >= a.quantise_from
        with torch.autocast(a.device, torch.bfloat16):
            got = model(ids.to(a.device), labels.to(a.device))
        got.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (matrices, rest):
            optimizer.step()
        model.zero_grad(set_to_none=True)
        steps, tokens = steps + 1, tokens + int((labels >= 0).sum())
        last.append(got.detach())
        now = time.time()
        spent, before = spent + now - before, now
        if steps % 20 == 0:
            print(f"step {steps} tokens {tokens} loss {torch.stack(last).mean():.4f} rate x{factor:.3f} {progress:.1%}", flush=True)
            last = []
        if now - saved > a.save_every or progress >= 1.0:
            print(f"held out {measure(model, data.held, tokenizer, a.device):.4f}", flush=True)
            save()
            saved = time.time()
        if progress >= 1.0:
            break
    with open(a.held_out, "w") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in data.held)
    print(f"{steps} steps, {tokens} tokens, {spent:.0f} s")


if __name__ == "__main__":
    main()
