//! How byte-level vocabularies split text before merging, by the name a GGUF file gives it.
//!
//! Expressions as in the models' own `tokenizer.json` (Llama 3, SmolLM2, Qwen2, Mistral Nemo) and, for `default`, as in
//! llama.cpp's `llama-vocab.cpp`.

use serde_json::{Value, json};

/// The pre-tokenizers that are known, under llama.cpp's names.
pub(super) const KNOWN: &[&str] = &["default", "gpt-2", "llama-bpe", "llama3", "qwen2", "smollm", "tekken"];

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a named pre-tokenizer means.
pub(super) struct Pre {
    /// For `tokenizer.json`: splits, then byte-level.
    pub pre_tokenizer: Value,
    /// Whether a word that is a token is taken whole, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether the begin-of-sequence token is added when the file does not say.
    pub adds_bos: bool,
}

/// The pre-tokenizer called `name`, or `None` if it is not known.
pub(super) fn get(name: &str) -> Option<Pre> {
    let (patterns, is_llama3): (&[&str], bool) = match name {
        "default" => (&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], false),
        "gpt-2" => (&[GPT2], false),
        "smollm" => (&[r"\p{N}", GPT2], false),
        "llama-bpe" | "llama3" => (&[LLAMA3], true),
        "qwen2" => (&[QWEN2], false),
        "tekken" => (&[TEKKEN], true),
        _ => return None,
    };
    let mut steps: Vec<Value> = patterns
        .iter()
        .map(|pattern| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }))
        .collect();
    steps.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
    let pre_tokenizer = json!({ "type": "Sequence", "pretokenizers": steps });
    Some(Pre { pre_tokenizer, ignore_merges: is_llama3, adds_bos: is_llama3 })
}
