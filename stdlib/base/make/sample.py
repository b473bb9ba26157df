"""Samples the base's training text from SmolLM2-135M-Instruct, in three steps.

  prepare  GGUF -> a folder with the teacher's quantised tensors, a cut vocabulary and the encoded tasks (needs gguf, transformers)
  draw     that folder -> drawn/*.jsonl; runs for as long as asked, can be started again and in parallel (needs torch, numpy alone)
  clean    drawn/*.jsonl -> text.jsonl: filters and removes duplicates

Every slot of the batch takes one token a step, either the next of its task or the one just drawn: there is no separate
prefill, a finished slot takes the next task at once, and the system prompt's keys and values are computed once.
"""

import argparse
import glob
import json
import multiprocessing
import os
import re
import time

import numpy as np

LAYERS, HIDDEN, FFN, HEADS, KV, DIM = 30, 576, 1536, 9, 3, 64
SYSTEM = "You write plain prose. Use simple words, short sentences and concrete things."
# Three examples, written for this, set the tone: without them the teacher drifts into "a unique world of diverse experiences".
SHOWN = [
    ("Write a story about Hanna, an old cook, who finds a silver bell on a farm and makes a new friend.",
     "Hanna went out to feed the hens. Something bright lay in the straw. It was a silver bell, small as an egg. She rang it once, and a thin "
     "grey goat came running from the hill. \"So you lost this,\" said Hanna. The goat ate bread from her hand. From then on it came every "
     "morning and slept by her door at night."),
    ("Explain how to cook leek soup.",
     "To make leek soup, wash three leeks and cut them into thin rings. Melt some butter in a pot and fry the leeks until they are soft. Pour in "
     "a litre of stock and add two potatoes in small pieces. Let the soup boil for twenty minutes. Add salt, pepper and a little cream, and "
     "serve it hot with bread."),
    ("Explain simply why wet clothes dry in the wind.",
     "Wet clothes dry because the water in them turns into vapour and leaves. The wind carries the damp air away, so more water can follow. "
     "That is why clothes dry faster on a windy day than on a calm one. Warm sun helps too, but even in winter a cold wind will dry a shirt."),
]
# Pale words the teacher leans on; it may not draw them.
PALE = """world unique diverse diversity culture cultures cultural essential various experience experiences journey technology community
communities significant crucial aspect environment environmental process overall individual individuals impact importance health healthy
ensure provide provides create creating creates important specific quality variety perfect traditional tradition traditions history vibrant
amazing incredible beauty essence sense creative creativity potential opportunity passion knowledge skills unexpected adventure
adventures magical magic complex system systems""".split()
# Whole words, common pieces, digits and plain punctuation: no markup, no code, nothing outside ASCII.
PLAIN = re.compile(r"^(Ġ?[A-Z]?[a-z]+|'[a-z]+|Ġ?[0-9]+|Ġ?[.,!?'\"\-:;]|[.,!?]\"|Ġ?[A-Z])$")
COMMON = 13000  # ids run from the commonest merges to the rarest
ONE, TWO = "weights-0.npz", "weights-1.npz"  # two files of under 64 MiB


def prepare(a):
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    import grid

    reader = GGUFReader(a.gguf)
    names = reader.fields["tokenizer.ggml.tokens"].contents()
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(a.gguf) or ".", gguf_file=os.path.basename(a.gguf))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    user, middle = [1] + encode("user\n"), [2] + encode("\n") + [1] + encode("assistant\n")
    prefix = [1] + encode(f"system\n{SYSTEM}") + [2] + encode("\n")
    for ask, answer in SHOWN:
        prefix += user + encode(ask) + middle + encode(answer) + [2] + encode("\n")
    prefix += user
    rows, openings = [], []
    for ask, opening in grid.tasks(a.seed, a.tasks):
        rows.append(encode(ask) + middle + encode(opening))
        openings.append(opening)
    emit = {i for i, s in enumerate(names[:COMMON]) if PLAIN.match(s)} | {2}
    emit |= {i for row in [prefix, *rows] for i in row if PLAIN.match(names[i])}  # rarer words that the tasks themselves use
    emit -= {names.index("Ġ" + w) for w in PALE}
    kept = np.array(sorted(emit | {i for row in rows for i in row} | set(prefix)), dtype=np.int64)
    place = {int(i): n for n, i in enumerate(kept)}
    os.makedirs(a.work, exist_ok=True)
    with open(f"{a.work}/tasks.json", "w") as f:
        json.dump({"vocab": [names[i] for i in kept], "emit": [int(i) in emit for i in kept], "end": place[2],
                   "prefix": [place[i] for i in prefix], "openings": openings}, f)
    flat = np.array([place[i] for row in rows for i in row], dtype=np.uint16)
    np.savez_compressed(f"{a.work}/tasks.npz", flat=flat, lengths=np.array([len(r) for r in rows], dtype=np.uint8))
    parts = [{}, {}]
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        raw = np.array(t.data)
        layer = int(t.name.split(".")[1]) if t.name.startswith("blk.") else 0
        if t.name == "token_embd.weight":
            raw = raw[kept]
        parts[layer >= LAYERS // 2 + 1][f"{t.name}:{t.tensor_type.name}"] = raw
    np.savez(f"{a.work}/{ONE}", **parts[0])
    np.savez(f"{a.work}/{TWO}", **parts[1])
    print(f"{len(rows)} tasks, {len(kept)} of {len(names)} tokens kept, prefix of {len(prefix)}, longest task {max(map(len, rows))}")


def dequantise(raw, kind):
    """Returns the f32 tensor [out, in] of GGUF rows: Q4_1 is (f16 scale, f16 low, 16 bytes), Q8_0 is (f16 scale, 32 i8) per 32."""
    if kind == "F32":
        return raw.astype(np.float32)
    rows = raw.shape[0]
    if kind == "Q8_0":
        blocks = raw.reshape(-1, 34)
        return (blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:].view(np.int8)).reshape(rows, -1)
    assert kind == "Q4_1", kind
    blocks = raw.reshape(-1, 20)
    scale, low = (blocks[:, i:i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (codes * scale + low).reshape(rows, -1)


def load(work, device, dtype):
    import torch

    got = {}
    for part in (ONE, TWO):
        with np.load(f"{work}/{part}") as z:
            for key in z.files:
                name, kind = key.split(":")
                got[name] = torch.from_numpy(dequantise(z[key], kind)).to(device)

    def halves(w):  # llama.cpp interleaves the rotary halves of q and k: put them back
        return w.view(-1, DIM // 2, 2, HIDDEN).transpose(1, 2).reshape(-1, HIDDEN)

    layers = []
    for i in range(LAYERS):
        g = {k.removeprefix(f"blk.{i}.").removesuffix(".weight"): v for k, v in got.items() if k.startswith(f"blk.{i}.")}
        qkv = torch.cat([halves(g["attn_q"]), halves(g["attn_k"]), g["attn_v"]]) * g["attn_norm"]  # the norm's weight folds in
        up = torch.cat([g["ffn_gate"], g["ffn_up"]]) * g["ffn_norm"]
        layers.append([w.to(dtype).contiguous() for w in (qkv, g["attn_output"], up, g["ffn_down"])])
    embedding = got["token_embd.weight"]
    return layers, embedding.to(dtype), (embedding * got["output_norm.weight"]).to(dtype)


class Teacher:
    def __init__(self, work, device, dtype, batch, shared, length, temperature, min_p, emit, end):
        import torch

        self.torch, self.F = torch, torch.nn.functional
        self.layers, self.embedding, head = load(work, device, dtype)
        self.emit = torch.tensor([i for i, e in enumerate(emit) if e], device=device)
        self.head = head[self.emit].contiguous()
        self.end = int(sum(emit[:end]))
        angle = torch.arange(shared + length).float()[:, None] * (100000.0 ** (-torch.arange(0, DIM, 2).float() / DIM))[None]
        self.cos, self.sin = (torch.cat([f, f], 1).to(device, dtype) for f in (angle.cos(), angle.sin()))
        self.k, self.v = (torch.zeros(LAYERS, batch, KV, length, DIM, device=device, dtype=dtype) for _ in range(2))
        self.pk, self.pv = (torch.zeros(LAYERS, KV, shared, DIM, device=device, dtype=dtype) for _ in range(2))
        self.shared = shared
        self.rows = torch.arange(batch, device=device)
        self.said = torch.zeros(batch, length, dtype=torch.long, device=device)
        self.place = torch.full((len(emit),), len(self.emit), device=device)  # a token's row in the cut head, or one behind it
        self.place[self.emit] = torch.arange(len(self.emit), device=device)
        self.columns = torch.arange(length, device=device)
        self.temperature, self.min_p, self.dtype = temperature, min_p, dtype

    def read(self, ids):
        """Fills the shared keys and values from the prefix `ids`."""
        torch, F = self.torch, self.F
        x, t = self.embedding[ids], len(ids)
        cos, sin = self.cos[:t, None], self.sin[:t, None]
        for i, (qkv, out, up, down) in enumerate(self.layers):
            y = F.linear(F.rms_norm(x, (HIDDEN,), eps=1e-5), qkv).view(t, HEADS + 2 * KV, DIM)
            r = y[:, :HEADS + KV]
            r = r * cos + torch.cat([-r[..., DIM // 2:], r[..., :DIM // 2]], -1) * sin
            self.pk[i], self.pv[i] = r[:, HEADS:].transpose(0, 1), y[:, HEADS + KV:].transpose(0, 1)
            k, v = (z.repeat_interleave(HEADS // KV, 0) for z in (self.pk[i], self.pv[i]))
            o = F.scaled_dot_product_attention(r[:, :HEADS].transpose(0, 1), k, v, is_causal=True)
            x = x + F.linear(o.transpose(0, 1).reshape(t, HIDDEN), out)
            gate, value = F.linear(F.rms_norm(x, (HIDDEN,), eps=1e-5), up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * value, down)

    def step(self, token, position, early):
        """Returns the drawn next token of each slot, given its token and that token's position; fills the cache.

        A slot that is `early` may not end yet. Positions count from behind the shared prefix, whose keys and values are kept once.
        """
        torch, F = self.torch, self.F
        b = token.shape[0]
        x = self.embedding[token]
        cos, sin = (f[position + self.shared][:, None] for f in (self.cos, self.sin))
        mask = torch.zeros(b, 1, 1, self.columns.shape[0], device=x.device, dtype=self.dtype)
        mask.masked_fill_((self.columns[None] > position[:, None])[:, None, None], float("-inf"))
        for i, (qkv, out, up, down) in enumerate(self.layers):
            y = F.linear(F.rms_norm(x, (HIDDEN,), eps=1e-5), qkv).view(b, HEADS + 2 * KV, DIM)
            r = y[:, :HEADS + KV]
            r = r * cos + torch.cat([-r[..., DIM // 2:], r[..., :DIM // 2]], -1) * sin
            self.k[i][self.rows, :, position] = r[:, HEADS:]
            self.v[i][self.rows, :, position] = y[:, HEADS + KV:]
            # The three query heads that share a key head stand as three query rows.
            # Plain products beat the fused CPU kernel 2.5 to 1 on so few query rows.
            q = r[:, :HEADS].reshape(b, KV, HEADS // KV, DIM)
            own = torch.matmul(q, self.k[i].transpose(-1, -2)) * DIM**-0.5 + mask
            q = q.transpose(0, 1).reshape(KV, -1, DIM)
            common = torch.matmul(q, self.pk[i].transpose(-1, -2)) * DIM**-0.5
            common = common.view(KV, b, HEADS // KV, -1).transpose(0, 1)
            weight = torch.softmax(torch.cat([common, own], -1), -1)
            common, own = weight.split([self.shared, own.shape[-1]], -1)
            o = torch.matmul(own, self.v[i])
            common = torch.matmul(common.transpose(0, 1).reshape(KV, -1, self.shared), self.pv[i])
            o = o + common.view(KV, b, HEADS // KV, DIM).transpose(0, 1)
            x = x + F.linear(o.reshape(b, HIDDEN), out)
            gate, value = F.linear(F.rms_norm(x, (HIDDEN,), eps=1e-5), up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * value, down)
        z = F.linear(F.rms_norm(x, (HIDDEN,), eps=1e-5), self.head).float() / self.temperature
        z[:, self.end].masked_fill_(early, float("-inf"))
        # A small teacher falls into loops: what followed this token before costs 1, after this pair of tokens 4.
        self.said[self.rows, position] = token
        again = (self.said[:, :-1] == token[:, None]) & (self.columns[:-1] < position[:, None])
        before = self.said[self.rows, (position - 1).clamp(min=0)]
        pair = again & torch.cat([again[:, :1] & False, self.said[:, :-2] == before[:, None]], 1)
        z = F.pad(z, (0, 1)).scatter_add(1, self.place[self.said[:, 1:]], -(again.float() + 3.0 * pair.float()))[:, :-1]
        z, which = z.topk(48, dim=1)  # a min_p of 0.05 leaves fewer
        z = z.masked_fill(z < z[:, :1] + np.log(self.min_p), float("-inf"))
        choice = (z - torch.empty_like(z).exponential_().log()).argmax(1, keepdim=True)
        return self.emit[which.gather(1, choice)[:, 0]]


def graphed(teacher, batch, device):
    """Returns a step replayed as one CUDA graph: some 600 small launches a step would otherwise cost more than the arithmetic."""
    import torch

    token, position = (torch.zeros(batch, dtype=torch.long, device=device) for _ in range(2))
    early = torch.zeros(batch, dtype=torch.bool, device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            teacher.step(token, position, early)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = teacher.step(token, position, early)

    def step(t, p, e):
        token.copy_(t)
        position.copy_(p)
        early.copy_(e)
        graph.replay()
        return drawn

    return step


def bytes_of():
    """Returns the character -> byte table of byte-level BPE (GPT-2's)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {chr(b): b for b in keep} | {chr(256 + n): b for n, b in enumerate(rest)}


def draw(a):
    import torch

    if a.device == "cpu":
        torch.set_num_threads(a.threads)
    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    meta = json.load(open(f"{a.work}/tasks.json"))
    with np.load(f"{a.work}/tasks.npz") as z:
        lengths, flat = z["lengths"].astype(np.int64), z["flat"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    prefix, end, table = np.array(meta["prefix"]), meta["end"], bytes_of()
    length = int(lengths.max()) + a.answer
    order = np.random.default_rng(a.seed).permutation(len(lengths))
    torch.manual_seed(a.seed)
    os.makedirs(f"{a.work}/drawn", exist_ok=True)
    path = f"{a.work}/drawn/{a.name}-{a.seed}.jsonl"
    done = sum(1 for _ in open(path)) if os.path.exists(path) else 0
    todo = iter(order[(done if a.resume else 0) % len(order):])
    out = open(path, "a")

    with torch.inference_mode():
        teacher = Teacher(a.work, a.device, dtype, a.batch, len(prefix), length, a.temperature, a.min_p, meta["emit"], end)
        step = teacher.step
        teacher.read(torch.from_numpy(prefix).to(a.device))
        if a.device == "cuda":
            step = graphed(teacher, a.batch, a.device)
        forced = np.zeros((a.batch, int(lengths.max())), dtype=np.int64)
        count, at, task = np.zeros(a.batch, dtype=np.int64), np.zeros(a.batch, dtype=np.int64), np.full(a.batch, -1)
        text = np.zeros((a.batch, length), dtype=np.int64)
        token = np.zeros(a.batch, dtype=np.int64)

        limit, lengths_rng = np.zeros(a.batch, dtype=np.int64), np.random.default_rng(a.seed)

        def fill(s):
            limit[s] = lengths_rng.integers(a.answer // 2, a.answer + 1)  # cut at its last sentence later
            n = next(todo, None)
            task[s] = -1 if n is None else n
            n = order[0] if n is None else n
            row = flat[starts[n]:starts[n + 1]]
            forced[s, :len(row)] = row
            count[s], at[s], token[s] = len(row), 0, row[0]

        for s in range(a.batch):
            fill(s)
        begin, tokens, steps, said = time.time(), 0, 0, time.time()
        slots = np.arange(a.batch)
        while (task >= 0).any() and time.time() - begin < a.seconds and tokens < a.tokens:
            given = (token, at, at + 1 - count < a.least)
            drawn = step(*(torch.from_numpy(x).to(a.device) for x in given)).cpu().numpy()
            at += 1
            free = at >= count
            token = np.where(free, drawn, forced[slots, np.minimum(at, forced.shape[1] - 1)])
            text[slots[free], (at - count)[free]] = drawn[free]
            finished = free & ((drawn == end) | (at - count + 1 >= limit))
            steps += 1
            tokens += int(free.sum())
            for s in slots[finished]:
                if task[s] >= 0:
                    ids = text[s, :at[s] - count[s] + 1]
                    ended = ids[-1] == end
                    body = "".join(meta["vocab"][i] for i in (ids[:-1] if ended else ids))
                    body = bytes(table[c] for c in body).decode("utf-8", "replace")
                    record = {"task": int(task[s]), "ended": bool(ended), "text": meta["openings"][task[s]] + body}
                    out.write(json.dumps(record) + "\n")
                fill(s)
            if time.time() - said > 20:
                out.flush()
                said = time.time()
                print(f"{steps} steps, {tokens} tokens, {tokens / (said - begin):.0f} tokens/s", flush=True)
    out.close()
    print(f"drew {tokens} tokens in {time.time() - begin:.0f} s, {tokens / (time.time() - begin):.0f} tokens/s")


BAD = re.compile(r"meat[\s-]*ball|as an ai\b|language model|assistant|i cannot|i can't help|smollm|hugging ?face|\bprompt\b|user:|http|www|"
                 r"short story|simple words|short sentences|here is a|here's a|certainly!|\bcode\b|python|\btitle\b", re.I)


def accept(text, ended):
    """Returns the cleaned text, or the reason why it is dropped behind an exclamation mark."""
    text = re.sub(r"\s+", " ", text).strip().replace(" ,", ",").replace(" .", ".")
    if not ended or text[-1:] not in '.!?"':
        cut = max(text.rfind(s) for s in ('. ', '! ', '? ', '." ', '!" ', '?" '))
        if cut < 0:
            return "!unfinished"
        text = text[:cut + (2 if text[cut + 1] == '"' else 1)]
    words = text.split()
    if not 20 <= len(words) <= 170:
        return "!length"
    if BAD.search(text):
        return "!phrase"
    if sum(c.isalpha() or c in " .,!?'\"" for c in text) < 0.96 * len(text) or not text.isascii():
        return "!characters"
    if text.count('"') % 2 or any(len(w) > 18 for w in words) or re.search(r"[.,]{2}|\w[.!?][A-Z]", text):
        return "!form"
    low = [w.lower().strip('.,!?"') for w in words]
    if len(set(zip(low, low[1:], low[2:]))) < 0.88 * (len(low) - 2) or len(set(low)) < 0.42 * len(low):
        return "!repetition"
    return text


def judge(line):
    """Returns what `accept` says of a line of a drawn file, or nothing for a line cut short by a kill."""
    if line.endswith("\n"):
        record = json.loads(line)
        return accept(record["text"], record["ended"])


def clean(a):
    seen, reasons, kept, words = set(), {}, 0, 0
    with open(a.out + ".new", "w") as out, multiprocessing.Pool() as pool:
        for path in sorted(glob.glob(f"{a.work}/drawn/*.jsonl")):
            for text in filter(None, pool.imap(judge, open(path), chunksize=500)):
                key = " ".join(text.lower().split()[3:12])
                if not text.startswith("!") and key in seen:
                    text = "!duplicate"
                if text.startswith("!"):
                    reasons[text] = reasons.get(text, 0) + 1
                    continue
                seen.add(key)
                kept, words = kept + 1, words + len(text.split())
                out.write(json.dumps({"text": text}) + "\n")
    os.replace(a.out + ".new", a.out)
    print(f"{kept} texts, {words} words kept; dropped {reasons}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["prepare", "draw", "clean"])
    p.add_argument("--work", required=True)
    p.add_argument("--gguf")
    p.add_argument("--tasks", type=int, default=60000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--name", default="a")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--least", type=int, default=36, help="fewest tokens of one answer")
    p.add_argument("--answer", type=int, default=130, help="most tokens of one answer")
    p.add_argument("--temperature", type=float, default=0.75)
    p.add_argument("--min-p", type=float, default=0.05)
    p.add_argument("--seconds", type=float, default=1e9)
    p.add_argument("--tokens", type=float, default=1e12)
    p.add_argument("--resume", action="store_true", help="go on behind the tasks already in the output file")
    p.add_argument("--out", default="text.jsonl")
    a = p.parse_args()
    {"prepare": prepare, "draw": draw, "clean": clean}[a.what](a)


if __name__ == "__main__":
    main()
