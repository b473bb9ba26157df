"""Writes the trained base as a bitsandbytes NF4 checkpoint (double quantisation), reads it back, measures it, draws samples.

The arithmetic follows bitsandbytes: absmax per 64, midpoints of the 16 NF4 values, the absmax less their mean in signed 8-bit
dynamic codes per 256. The codes are the nearest ones, as its CUDA kernels have them. On a CPU bitsandbytes 0.50 looks a code up in
65,536 even cells of [-1, 1], so a value within half a cell (1.5e-5) of a midpoint may get another one: 30 of the 16,896 absmax
codes of six random 352 x 512 matrices differ, and that lookup written out in numpy gives all of them; everything else is the same.
Files: config.json, tokenizer.json, model.safetensors, samples.md.
"""

import argparse
import functools
import json
import os
import shutil

import torch

NF4 = torch.tensor([-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1])
MIDDLE = torch.tensor([-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
                       -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
                       0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011])
BLOCK, NESTED = 64, 256


def dynamic_map():
    """Returns bitsandbytes' signed dynamic 8-bit map: seven decades, each twice as fine as the one below."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        means = 10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)  # the product in f32, as there
        values += means.tolist() + (-means).tolist()
    return torch.tensor(sorted(values))


@functools.cache
def tables(device):
    """Returns the NF4 values, their midpoints, the dynamic map and its midpoints on `device`."""
    table = dynamic_map()
    return [t.to(device) for t in (NF4, MIDDLE, table, (table[1:] + table[:-1]) / 2)]


def quantise(w):
    """Returns the six tensors' raw material of `w` [out, in]: codes, absmax codes, nested absmax, offset."""
    _, edges, _, middle = tables(w.device)
    flat = w.detach().float().reshape(-1, BLOCK)
    absmax = flat.abs().amax(1)
    codes = torch.bucketize(flat * (1 / absmax.clamp(min=1e-30))[:, None], edges)  # above a midpoint goes up
    offset = absmax.mean()
    rest = absmax - offset
    rest = torch.nn.functional.pad(rest, (0, -len(rest) % NESTED)).view(-1, NESTED)
    nested = rest.abs().amax(1)
    small = torch.bucketize(rest * (1 / nested.clamp(min=1e-30))[:, None], middle).view(-1)[:len(absmax)]
    return codes, small, nested, offset


def dequantise(codes, small, nested, offset, shape):
    values, _, table, _ = tables(codes.device)
    absmax = table[small] * nested.repeat_interleave(NESTED)[:len(small)] + offset
    return (values[codes] * absmax[:, None]).view(shape)


def fake(w):
    """Returns `w` as it will read after the NF4 file, with the gradient passed straight through."""
    return w + (dequantise(*quantise(w), w.shape) - w).detach()


def pack(name, w):
    """Returns the six tensors of one quantised linear, named and laid out as bitsandbytes saves them."""
    codes, small, nested, offset = quantise(w)
    codes = codes.view(-1, 2).to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(w.shape), "nested_blocksize": NESTED,
             "nested_dtype": "float32", "nested_offset": offset.item()}
    state = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {name: (codes[:, :1] << 4 | codes[:, 1:]).contiguous(), f"{name}.absmax": small.to(torch.uint8), f"{name}.nested_absmax": nested,
            f"{name}.nested_quant_map": dynamic_map(), f"{name}.quant_map": NF4.clone(), f"{name}.quant_state.bitsandbytes__nf4": state}


def unpack(tensors):
    """Returns plain bf16 tensors from a file's: what a reader of the checkpoint computes with."""
    out = {}
    for name, t in tensors.items():
        state = tensors.get(f"{name}.quant_state.bitsandbytes__nf4")
        if state is not None:
            state = json.loads(bytes(state.tolist()))
            codes = torch.cat([t >> 4, t & 15], 1).view(-1, BLOCK).long()
            out[name] = dequantise(codes, tensors[f"{name}.absmax"].long(), tensors[f"{name}.nested_absmax"],
                                   torch.tensor(state["nested_offset"]), state["shape"]).to(torch.bfloat16)
        elif ".weight." not in name:
            out[name] = t
    return out


def config(shape):
    return {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16", **shape,
        "quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0, "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
        },
    }


def write(checkpoint, tokenizer, out):
    from safetensors.torch import save_file

    tensors = {}
    for name, w in checkpoint["model"].items():
        w = w.cpu()
        tensors |= pack(name, w) if "_proj." in name else {name: w.to(torch.bfloat16).contiguous()}
    os.makedirs(out, exist_ok=True)
    save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
    with open(f"{out}/config.json", "w") as f:
        json.dump(config(checkpoint["shape"]), f, indent=2)
        f.write("\n")
    if os.path.abspath(tokenizer) != os.path.abspath(f"{out}/tokenizer.json"):
        shutil.copyfile(tokenizer, f"{out}/tokenizer.json")


def read(folder):
    """Returns the transformers model made of the exported files, dequantised here, in f32."""
    from safetensors.torch import load_file
    from transformers import MistralConfig, MistralForCausalLM

    c = json.load(open(f"{folder}/config.json"))
    c.pop("quantization_config")
    c.pop("torch_dtype")
    model = MistralForCausalLM(MistralConfig(**c)).float().eval()
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in unpack(load_file(f"{folder}/model.safetensors")).items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


@torch.no_grad()
def loss(model, tokenizer, texts):
    """Returns the mean loss per token with and without the final `</s>`, each text alone as <s> text </s>."""
    total, ends, count = 0.0, 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids + [2]])
        each = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
        total, ends, count = total + each.sum().item(), ends + each[-1].item(), count + len(each)
    return total / count, (total - ends) / (count - len(texts))


PROMPTS = ["One morning, Anna", "The old fisherman", "To make onion soup,", "Dear Clara, thank you", "The kitchen was", "Bread is", "Once upon a time,",
           "\"Good morning,\" said", "When it snows,", "Melt the butter", "In the evening,", "A good cook", "The little dog", "Heat the oven",
           "Every summer,", "Potatoes", "Grandmother", "It is easy to", "By the sea,", ""]


@torch.no_grad()
def continuations(model, tokenizer, seed, temperature, most):
    torch.manual_seed(seed)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids if prompt else [1]
        ids = torch.tensor([ids])
        got = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_p=0.95, top_k=0,
                             max_new_tokens=most, pad_token_id=2)[0]
        ended = got[-1].item() == 2
        texts.append((prompt, tokenizer.decode(got.tolist(), skip_special_tokens=True)[len(prompt):], ended))
    return texts


def distinct(texts):
    """Returns the share of different word pairs among all word pairs of `texts`."""
    pairs = [p for t in texts for w in [t.lower().split()] for p in zip(w, w[1:])]
    return len(set(pairs)) / max(1, len(pairs))


def main():
    from tokenizers import Tokenizer

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--held-out", help="jsonl of texts kept from training, written by pretrain.py")
    p.add_argument("--samples", action="store_true")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--temperature", type=float, default=0.7)
    p.add_argument("--most", type=int, default=90, help="most new tokens of one sample")
    a = p.parse_args()
    checkpoint = torch.load(a.checkpoint, map_location="cpu", weights_only=True)
    write(checkpoint, a.tokenizer, a.out)
    model, tokenizer = read(a.out), Tokenizer.from_file(a.tokenizer)
    size = sum(os.path.getsize(f"{a.out}/{f}") for f in ("config.json", "tokenizer.json", "model.safetensors"))
    print(f"{sum(w.numel() for w in checkpoint['model'].values())} parameters, {size / 1e6:.2f} MB in three files")
    if a.held_out:
        texts = [json.loads(line)["text"] for line in open(a.held_out)]
        print("held out, NF4: {:.4f} with </s>, {:.4f} without".format(*loss(model, tokenizer, texts)))
        model.load_state_dict({k: v.float() for k, v in checkpoint["model"].items()}, strict=False)
        model.tie_weights()
        print("held out, f32: {:.4f} with </s>, {:.4f} without".format(*loss(model, tokenizer, texts)))
        model = read(a.out)
    if a.samples:
        got = continuations(model, tokenizer, a.seed, a.temperature, a.most)
        share = distinct([prompt + body for prompt, body, _ in got])
        print(f"distinct-2 {share:.3f}, {sum(e for *_, e in got)} of {len(got)} ended by themselves")
        with open(f"{a.out}/samples.md", "w") as f:
            f.write(f"# Twenty continuations\n\nDrawn from the NF4 files: temperature {a.temperature}, top-p 0.95, seed {a.seed}, at most {a.most} new tokens; "
                    f"the prompt in bold.\nA text without ∎ was cut at that length. Distinct-2 of all of them: {share:.3f}.\n\n")
            for n, (prompt, body, ended) in enumerate(got, 1):
                body = body.replace("\n", " ")
                body = body if prompt else body.strip()
                f.write(f"{n}. {f'**{prompt}**' if prompt else '*(no prompt)* '}{body}{' ∎' if ended else ' …'}\n")


if __name__ == "__main__":
    main()
