//! A GGUF file's tokenizer, written as a `tokenizer.json`, so that both take the same path from there.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Error, Result, pre};
use crate::weights::GgufTokenizer;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const ORIGIN: &str = "the GGUF file's tokenizer";

pub(super) fn to_json(gguf: &GgufTokenizer) -> Result<Value> {
    if gguf.tokens.is_empty() {
        return Err(Error::GgufMissing { key: "tokenizer.ggml.tokens" });
    }
    match gguf.model.as_str() {
        "llama" => sentencepiece(gguf),
        "gpt2" => byte_level(gguf),
        name => Err(unsupported("tokenizer.ggml.model", name, &["llama", "gpt2"])),
    }
}

fn unsupported(kind: &'static str, name: &str, known: &'static [&'static str]) -> Error {
    Error::Unsupported { origin: ORIGIN.to_owned(), kind, name: name.to_owned(), known }
}

/// SentencePiece BPE: `▁` for spaces, a score per token, bytes for what no token spells.
fn sentencepiece(gguf: &GgufTokenizer) -> Result<Value> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err(Error::GgufMissing { key: "tokenizer.ggml.scores" });
    }
    let has_prefix = gguf.add_space_prefix.unwrap_or(true);
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    if has_prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
    }
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if has_prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let typed = |wanted: i32| gguf.token_types.iter().position(|kind| *kind == wanted);
    let unknown = gguf.unk.map(|id| id as usize).or_else(|| typed(UNKNOWN)).and_then(|id| gguf.tokens.get(id));
    let merges = if gguf.merges.is_empty() { merges_from_scores(gguf) } else { merges_from_list(gguf) };
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(gguf),
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": post_processor(gguf, true)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary(gguf), "merges": merges,
        },
    }))
}

/// GPT-2's byte-level BPE: one character per byte, merges in order.
fn byte_level(gguf: &GgufTokenizer) -> Result<Value> {
    if gguf.merges.is_empty() {
        return Err(Error::GgufMissing { key: "tokenizer.ggml.merges" });
    }
    let name = gguf.pre.as_deref().ok_or(Error::GgufMissing { key: "tokenizer.ggml.pre" })?;
    let pre = pre::get(name).ok_or_else(|| unsupported("tokenizer.ggml.pre", name, pre::KNOWN))?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(gguf),
        "normalizer": null,
        "pre_tokenizer": pre.pre_tokenizer,
        "post_processor": post_processor(gguf, pre.adds_bos)?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocabulary(gguf), "merges": merges_from_list(gguf),
        },
    }))
}

/// Token to id. Files pad their vocabulary with repeated names; the first keeps the name, as in llama.cpp.
fn vocabulary(gguf: &GgufTokenizer) -> Map<String, Value> {
    let mut vocabulary = Map::with_capacity(gguf.tokens.len());
    for (id, token) in gguf.tokens.iter().enumerate() {
        let name = if vocabulary.contains_key(token) { format!("{token}#{id}") } else { token.clone() };
        vocabulary.insert(name, Value::from(id));
    }
    vocabulary
}

fn added_tokens(gguf: &GgufTokenizer) -> Vec<Value> {
    let typed = gguf.tokens.iter().zip(&gguf.token_types).enumerate();
    typed
        .filter(|(_, (_, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != USER_DEFINED,
            })
        })
        .collect()
}

fn post_processor(gguf: &GgufTokenizer, default: bool) -> Result<Value> {
    if !gguf.add_bos.unwrap_or(default) {
        return Ok(Value::Null);
    }
    let bos = gguf.bos.ok_or(Error::GgufMissing { key: "tokenizer.ggml.bos_token_id" })?;
    // An id that names no token is told by whoever reads this.
    let name = gguf.tokens.get(bos as usize).map_or("bos", String::as_str);
    let special = json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), special, text("B")],
        "special_tokens": { name: { "id": name, "ids": [bos], "tokens": [name] } },
    }))
}

fn merges_from_list(gguf: &GgufTokenizer) -> Vec<Value> {
    gguf.merges.iter().map(|merge| Value::from(merge.as_str())).collect()
}

/// Every way to put a token together from two others, the best-scored token first.
///
/// Within a token, pairs go by the scores of their left and right part, best first: the order in which transformers
/// converts SentencePiece vocabularies.
fn merges_from_scores(gguf: &GgufTokenizer) -> Vec<Value> {
    let mut scores: HashMap<&str, f32> = HashMap::with_capacity(gguf.tokens.len());
    for (token, score) in gguf.tokens.iter().zip(&gguf.scores) {
        scores.entry(token).or_insert(*score);
    }
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (id, token) in gguf.tokens.iter().enumerate() {
        // Bytes and special tokens are never merged from text.
        if gguf.token_types.get(id).is_some_and(|kind| !matches!(*kind, NORMAL | USER_DEFINED)) {
            continue;
        }
        let Some(score) = scores.get(token.as_str()) else { continue };
        let mut pairs: Vec<(f32, f32, &str, &str)> = Vec::new();
        for (split, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(split);
            if let (Some(a), Some(b)) = (scores.get(left), scores.get(right)) {
                pairs.push((*a, *b, left, right));
            }
        }
        pairs.sort_by(|x, y| y.0.total_cmp(&x.0).then(y.1.total_cmp(&x.1)));
        merges.extend(pairs.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    merges.sort_by(|x, y| y.0.total_cmp(&x.0));
    merges.into_iter().map(|(_, left, right)| Value::from(vec![left, right])).collect()
}
