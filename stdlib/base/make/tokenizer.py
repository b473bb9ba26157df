"""Trains the base's tokenizer: byte-fallback BPE as Mistral's v0.3 files have it, about 4096 tokens, with `<s>` set in front.

Merges are learned inside words alone, so the finished tokenizer needs no pre-tokenizer, as Mistral's has none.
"""

import argparse
import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ALWAYS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?'\"-:;()/%&åäöÅÄÖéèü°–—’“”½¼".replace(" ", "▁")
SPECIAL = ["<unk>", "<s>", "</s>"]


def train(texts, size):
    """Returns the learned pieces and merges, best first."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("▁?[^▁]+|▁"), "isolated"),
        pre_tokenizers.Split(Regex(r"▁?\p{L}+|'\p{L}+|\p{N}|▁(?=\p{N})|[^\p{L}\p{N}▁]"), "isolated"),
    ])
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(ALWAYS), limit_alphabet=len(set(ALWAYS)),
                                  min_frequency=3, show_progress=False)
    t.train_from_iterator(texts, trainer)
    model = json.loads(t.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def build(pieces, merges):
    byte = [f"<0x{b:02X}>" for b in range(256)]
    letters = [p for p in pieces if len(p) == 1]
    vocab = {p: i for i, p in enumerate([*SPECIAL, *byte, *(p for p in pieces if len(p) > 1), *letters])}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.add_special_tokens(SPECIAL)
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return t


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", nargs="+", required=True, help="jsonl files with a `text` field")
    p.add_argument("--size", type=int, default=4096)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    texts = [json.loads(line)["text"] for path in a.text for line in open(path)]
    t = build(*train(texts, a.size - len(SPECIAL) - 256))
    t.save(a.out)
    words = sum(len(x.split()) for x in texts)
    tokens = sum(len(e.ids) for e in t.encode_batch(texts))
    for x in [*texts[:300], "Köttbullar med gräddsås: 20 g\n½ 漢 🙂", "  two  spaces"]:
        assert t.decode(t.encode(x).ids) == x, x
    print(f"{t.get_vocab_size()} tokens; {len(texts)} texts, {words} words, {tokens} tokens with <s>, {tokens / words:.3f} a word")
    print([t.id_to_token(i) for i in (0, 1, 2, 3, 258, 259, 260)], t.encode("The kitchen was warm.").tokens)


if __name__ == "__main__":
    main()
