//! `tokenizer.json`: checked, made safe, and handed to the tokenizers crate.
//!
//! The crate trusts its file: a merge longer than any token, a nested prefix or a stray truncation rule panics or cuts
//! text in silence. So everything it would trip over is refused here, and what could turn plain text into a special
//! token, or the same text into different tokens, is taken out.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::pieces::{Spelling, byte_token, char_of};
use super::{Error, Result, Roles};

/// No model has more tokens; ids are table indices, so a wild one must not allocate.
const MAX_ID: u64 = 1 << 22;
const DECODERS: &[&str] = &["ByteLevel", "Metaspace", "Sequence", "Replace", "ByteFallback", "Fuse", "Strip"];

/// A tokenizer and what its file says beyond the crate's view.
pub(super) struct Loaded {
    pub model: tokenizers::Tokenizer,
    /// One more than the highest id.
    pub size: usize,
    pub spelling: Spelling,
    /// What the post-processor puts in front of a text.
    pub prefix: Vec<u32>,
    pub unknown: Option<u32>,
    /// Bytes that cannot be encoded.
    pub uncovered: Vec<u8>,
}

pub(super) fn parse(bytes: &[u8], origin: &str) -> Result<Value> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        Error::NotJson { origin: origin.to_owned(), line: error.line(), column: error.column(), reason }
    })
}

pub(super) fn load(mut root: Value, origin: &str) -> Result<Loaded> {
    let reader = Reader { origin };
    let Some(file) = root.as_object_mut() else { return Err(reader.bad("its top level is no object")) };
    let added = reader.added_tokens(file)?;
    let special: HashSet<&str> = added.iter().filter(|token| token.special).map(|token| &*token.content).collect();
    let Some(model) = file.get_mut("model").and_then(Value::as_object_mut) else {
        return Err(reader.bad("it has no `model` object"));
    };
    reader.model_kind(model)?;
    let vocabulary = reader.vocabulary(model)?;
    reader.merges(model, &vocabulary, &special)?;
    model.insert("dropout".to_owned(), Value::Null);
    let unknown = reader.unknown(model, &vocabulary)?;
    let has_bytes = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    for key in ["truncation", "padding"] {
        file.insert(key.to_owned(), Value::Null);
    }
    let spelling = reader.spelling(file.get("decoder").unwrap_or(&Value::Null))?;
    let uncovered = reader.uncovered(file, &vocabulary, has_bytes, unknown)?;
    let post_processor = file.insert("post_processor".to_owned(), Value::Null).unwrap_or(Value::Null);
    let prefix = reader.prefix(&post_processor, &vocabulary, &added)?;

    // Through bytes, not `from_value`: the crate's readers want borrowed strings.
    let bytes = serde_json::to_vec(&root).map_err(|error| reader.bad(&error.to_string()))?;
    let mut model: tokenizers::Tokenizer =
        serde_json::from_slice(&bytes).map_err(|error| reader.bad(&error.to_string()))?;
    model.set_encode_special_tokens(true);
    let mut highest = vocabulary.values().copied().max().unwrap_or(0);
    for token in &added {
        let id = model.token_to_id(&token.content);
        if id != Some(token.id) {
            let id = id.map_or("none".to_owned(), |id| id.to_string());
            return Err(
                reader.bad(&format!("added token `{}` has id {}, but its place is {id}", token.content, token.id))
            );
        }
        highest = highest.max(token.id);
    }
    Ok(Loaded { model, size: highest as usize + 1, spelling, prefix, unknown, uncovered })
}

struct AddedToken {
    id: u32,
    content: String,
    special: bool,
}

struct Reader<'a> {
    origin: &'a str,
}

impl Reader<'_> {
    fn bad(&self, reason: &str) -> Error {
        Error::Format { origin: self.origin.to_owned(), reason: reason.to_owned() }
    }

    fn unsupported(&self, kind: &'static str, name: &str, known: &'static [&'static str]) -> Error {
        Error::Unsupported { origin: self.origin.to_owned(), kind, name: name.to_owned(), known }
    }

    fn id(&self, value: Option<&Value>, what: &str) -> Result<u32> {
        match value.and_then(Value::as_u64) {
            Some(id) if id < MAX_ID => Ok(id as u32),
            _ => Err(self.bad(&format!("{what} has no id from 0 to {}", MAX_ID - 1))),
        }
    }

    fn added_tokens(&self, file: &Map<String, Value>) -> Result<Vec<AddedToken>> {
        let list = match file.get("added_tokens") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(list) => list.as_array().ok_or_else(|| self.bad("`added_tokens` is no list"))?,
        };
        let mut tokens = Vec::with_capacity(list.len());
        for token in list {
            let content = token.get("content").and_then(Value::as_str);
            let content = content.ok_or_else(|| self.bad("an added token has no `content`"))?.to_owned();
            let id = self.id(token.get("id"), &format!("added token `{content}`"))?;
            let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            if !content.is_empty() {
                tokens.push(AddedToken { id, content, special });
            }
        }
        Ok(tokens)
    }

    fn model_kind(&self, model: &Map<String, Value>) -> Result<()> {
        let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
        if kind != "BPE" {
            return Err(self.unsupported("model", kind, &["BPE"]));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if let Some(text) = model.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()) {
                return Err(self.bad(&format!("its `{key}` is `{text}`, and only models without one are read")));
            }
        }
        Ok(())
    }

    fn vocabulary(&self, model: &Map<String, Value>) -> Result<HashMap<String, u32>> {
        let vocabulary = model.get("vocab").and_then(Value::as_object);
        let vocabulary = vocabulary.ok_or_else(|| self.bad("its model has no `vocab` object"))?;
        if vocabulary.is_empty() {
            return Err(self.bad("its vocabulary is empty"));
        }
        let mut taken = HashSet::with_capacity(vocabulary.len());
        let mut ids = HashMap::with_capacity(vocabulary.len());
        for (token, id) in vocabulary {
            let id = self.id(Some(id), &format!("token `{token}`"))?;
            if !taken.insert(id) {
                return Err(self.bad(&format!("two tokens have id {id}, one is `{token}`")));
            }
            ids.insert(token.clone(), id);
        }
        Ok(ids)
    }

    /// Checks every merge, and drops those that would build a special token or a byte token out of plain text.
    fn merges(
        &self,
        model: &mut Map<String, Value>,
        vocabulary: &HashMap<String, u32>,
        special: &HashSet<&str>,
    ) -> Result<()> {
        let merges = model.get("merges").and_then(Value::as_array);
        let merges = merges.ok_or_else(|| self.bad("its model has no `merges` list"))?;
        let mut kept = Vec::with_capacity(merges.len());
        for (rank, merge) in merges.iter().enumerate() {
            let pair = match merge {
                Value::String(text) if text.starts_with("#version") => continue,
                Value::String(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                    _ => None,
                },
                _ => None,
            };
            let Some((left, right)) = pair.filter(|(left, right)| !left.is_empty() && !right.is_empty()) else {
                return Err(self.bad(&format!("merge {} is no pair of tokens", rank + 1)));
            };
            let whole = format!("{left}{right}");
            if let Some(token) =
                [left, right, whole.as_str()].into_iter().find(|token| !vocabulary.contains_key(*token))
            {
                return Err(self.bad(&format!("merge {} needs the token `{token}`, which it lacks", rank + 1)));
            }
            if !special.contains(whole.as_str()) && byte_token(&whole).is_none() {
                kept.push(Value::from(vec![left, right]));
            }
        }
        model.insert("merges".to_owned(), Value::Array(kept));
        Ok(())
    }

    fn unknown(&self, model: &Map<String, Value>, vocabulary: &HashMap<String, u32>) -> Result<Option<u32>> {
        match model.get("unk_token").and_then(Value::as_str) {
            None => Ok(None),
            Some(token) => match vocabulary.get(token) {
                Some(id) => Ok(Some(*id)),
                None => Err(self.bad(&format!("its unknown token `{token}` is not in the vocabulary"))),
            },
        }
    }

    /// The bytes no token stands for: the crate leaves them out in silence, so a text that holds one must be an error.
    fn uncovered(
        &self,
        file: &Map<String, Value>,
        vocabulary: &HashMap<String, u32>,
        has_bytes: bool,
        unknown: Option<u32>,
    ) -> Result<Vec<u8>> {
        let is_byte_level =
            ["pre_tokenizer", "normalizer"].iter().any(|key| file.get(*key).is_some_and(|v| mentions(v, "ByteLevel")));
        let spelled = |byte: u8| if is_byte_level { char_of(byte).to_string() } else { format!("<{byte:#04X}>") };
        let missing: Vec<u8> = (0..=255u8).filter(|byte| !vocabulary.contains_key(&spelled(*byte))).collect();
        match (is_byte_level, unknown) {
            (_, Some(_)) => Ok(Vec::new()),
            // Byte-level vocabularies in use lack the bytes that never came up in training, such as control characters.
            (true, None) => Ok(missing),
            (false, None) if has_bytes && missing.is_empty() => Ok(missing),
            (false, None) => {
                Err(self.bad("it has neither all byte tokens nor an unknown token, so characters would be lost"))
            }
        }
    }

    fn spelling(&self, decoder: &Value) -> Result<Spelling> {
        let mut spelling = Spelling::Spaces { drops_first_space: false, has_bytes: false };
        self.add_decoder(decoder, &mut spelling)?;
        Ok(spelling)
    }

    fn add_decoder(&self, decoder: &Value, spelling: &mut Spelling) -> Result<()> {
        let kind = decoder.get("type").and_then(Value::as_str).unwrap_or("none");
        let text = |key: &str| decoder.get(key).and_then(Value::as_str);
        match (kind, &mut *spelling) {
            ("Sequence", _) => {
                for part in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.add_decoder(part, spelling)?;
                }
                Ok(())
            }
            ("ByteLevel", _) => {
                *spelling = Spelling::ByteLevel;
                Ok(())
            }
            ("Fuse", _) => Ok(()),
            ("ByteFallback", Spelling::Spaces { has_bytes, .. }) => {
                *has_bytes = true;
                Ok(())
            }
            ("Metaspace", Spelling::Spaces { drops_first_space, .. }) if text("replacement") == Some("▁") => {
                let legacy = decoder.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
                *drops_first_space = text("prepend_scheme").map_or(legacy, |scheme| scheme != "never");
                Ok(())
            }
            ("Replace", _) => {
                let from = decoder.pointer("/pattern/String").and_then(Value::as_str);
                if from == Some("▁") && text("content") == Some(" ") {
                    return Ok(());
                }
                Err(self.bad("its decoder replaces something other than `▁` by a space"))
            }
            ("Strip", Spelling::Spaces { drops_first_space, .. }) if text("content") == Some(" ") => {
                let count = |key: &str| decoder.get(key).and_then(Value::as_u64);
                match (count("start"), count("stop")) {
                    (Some(start @ (0 | 1)), Some(0)) => {
                        *drops_first_space |= start == 1;
                        Ok(())
                    }
                    _ => Err(self.bad("its decoder strips more than one leading space")),
                }
            }
            (name, _) => Err(self.unsupported("decoder", name, DECODERS)),
        }
    }

    /// The special tokens a post-processor puts before the text.
    fn prefix(&self, processor: &Value, vocabulary: &HashMap<String, u32>, added: &[AddedToken]) -> Result<Vec<u32>> {
        let is_known = |id: u32| vocabulary.values().any(|v| *v == id) || added.iter().any(|token| token.id == id);
        let known = |id: u32| {
            if is_known(id) {
                Ok(id)
            } else {
                Err(self.bad(&format!("its post-processor adds id {id}, which it lacks")))
            }
        };
        match processor.get("type").and_then(Value::as_str) {
            None | Some("ByteLevel") => Ok(Vec::new()),
            Some("Sequence") => {
                let mut prefix = Vec::new();
                for part in processor.get("processors").and_then(Value::as_array).into_iter().flatten() {
                    prefix.extend(self.prefix(part, vocabulary, added)?);
                }
                Ok(prefix)
            }
            Some("BertProcessing" | "RobertaProcessing") => {
                Ok(vec![known(self.id(processor.pointer("/cls/1"), "its post-processor's `cls`")?)?])
            }
            Some("TemplateProcessing") => {
                let mut prefix = Vec::new();
                for part in processor.get("single").and_then(Value::as_array).into_iter().flatten() {
                    let Some(name) = part.pointer("/SpecialToken/id").and_then(Value::as_str) else { break };
                    let ids = processor.get("special_tokens").and_then(|tokens| tokens.get(name));
                    let ids = ids.and_then(|token| token.get("ids")).and_then(Value::as_array);
                    let ids = ids.ok_or_else(|| self.bad(&format!("its template names `{name}` without an id")))?;
                    for id in ids {
                        prefix.push(known(self.id(Some(id), &format!("the template's `{name}`"))?)?);
                    }
                }
                Ok(prefix)
            }
            Some(name) => Err(self.unsupported(
                "post_processor",
                name,
                &["TemplateProcessing", "ByteLevel", "Sequence", "BertProcessing", "RobertaProcessing"],
            )),
        }
    }
}

/// Whether a part of this type is in there.
fn mentions(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(kind) || map.values().any(|value| mentions(value, kind))
        }
        Value::Array(list) => list.iter().any(|value| mentions(value, kind)),
        _ => false,
    }
}

/// `bos_token_id` and `eos_token_id` (one or a list) of a `config.json`.
pub(super) fn roles_from_config(config: &Value, _: &Value, roles: &mut Roles) {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    roles.bos = config.get("bos_token_id").and_then(id);
    roles.eos = match config.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    };
    roles.vocab_size = config.get("vocab_size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
}

/// `bos_token` and `eos_token` of a `tokenizer_config.json`, for roles that are still open.
pub(super) fn roles_from_tokenizer_config(config: &Value, tokenizer: &Value, roles: &mut Roles) {
    let id = |key: &str| {
        let token = config.get(key)?;
        let content = token.as_str().or_else(|| token.get("content")?.as_str())?;
        let added = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
        let in_added = added.filter(|token| token.get("content").and_then(Value::as_str) == Some(content));
        let in_added = in_added.filter_map(|token| token.get("id")).next();
        let found = in_added.or_else(|| tokenizer.get("model")?.get("vocab")?.get(content))?;
        found.as_u64().and_then(|id| u32::try_from(id).ok())
    };
    roles.bos = roles.bos.or_else(|| id("bos_token"));
    if roles.eos.is_empty() {
        roles.eos.extend(id("eos_token"));
    }
}
