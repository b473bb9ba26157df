//! Text to token ids and back, by the model's own rules.
//!
//! One path for training, evaluation and generation. Special tokens come from structure, never from text: `encode`
//! turns a literal `</s>` into plain pieces. The begin-of-sequence token is put in front exactly once if the model's
//! own rule says so; the end-of-sequence token is never added here.

mod gguf;
mod json;
mod pieces;
mod pre;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use crate::io;
use crate::weights::{GgufTokenizer, ModelConfig, TokenizerSource};

pub use stream::Stream;

use pieces::Pieces;

/// The largest `tokenizer.json` in use has about 35 MB.
const MAX_BYTES: u64 = 512 << 20;

/// Why text could not become tokens, or tokens text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{origin} is not JSON at line {line}, column {column}: {reason}; is the file complete?")]
    NotJson { origin: String, line: usize, column: usize, reason: String },
    #[error("{origin} is no tokenizer that can be read: {reason}")]
    Format { origin: String, reason: String },
    #[error("{origin} has a `{kind}` of type `{name}`, which is not supported; supported: {}", .known.join(", "))]
    Unsupported { origin: String, kind: &'static str, name: String, known: &'static [&'static str] },
    #[error("the GGUF file has no `{key}`, which its tokenizer needs")]
    GgufMissing { key: &'static str },
    #[error(
        "the tokenizer has {tokens} tokens, more than the {vocab_size} the model knows: they do not belong together"
    )]
    MoreThanModel { tokens: usize, vocab_size: usize },
    #[error("the model's {role} token has id {id}, which its tokenizer does not know ({tokens} tokens)")]
    NoSuchSpecial { role: &'static str, id: u32, tokens: usize },
    #[error("token id {id} is outside the tokenizer's {tokens} tokens")]
    UnknownId { id: u32, tokens: usize },
    #[error("plain text would become the special token `{token}`; take it out of the text")]
    SpecialFromText { token: String },
    #[error("the model has no token for {character:?} (U+{:04X}); take it out of the text", u32::from(*.character))]
    NoToken { character: char },
    #[error("the text cannot be tokenised: {reason}")]
    Encode { reason: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// A token with a role, such as the end of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    pub id: u32,
    pub text: String,
}

/// What the model says about its tokens beside the tokenizer file.
#[derive(Clone, Debug, Default)]
struct Roles {
    bos: Option<u32>,
    eos: Vec<u32>,
    vocab_size: Option<usize>,
}

/// A tokenizer; cheap to clone, shared between threads.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    model: tokenizers::Tokenizer,
    pieces: Pieces,
    /// What the model's own rule puts in front of every text.
    prefix: Vec<u32>,
    bos: Option<Special>,
    eos: Option<Special>,
    eos_ids: Vec<u32>,
    unknown: Option<u32>,
    uncovered: Vec<u8>,
}

impl Tokenizer {
    /// The tokenizer of the checkpoint `origin`, with the roles its config gives to tokens.
    pub fn from_source(source: TokenizerSource, config: &ModelConfig, origin: &str) -> Result<Self> {
        let mut roles =
            Roles { bos: config.bos_token_id, eos: config.eos_token_ids.clone(), vocab_size: Some(config.vocab_size) };
        // What training teaches as the end of a text ends a generated one too, whatever `generation_config.json` says.
        if roles.eos.is_empty()
            && let TokenizerSource::Gguf(gguf) = &source
        {
            roles.eos.extend(gguf.eos);
        }
        roles.eos.extend(&config.generation_eos_token_ids);
        match source {
            TokenizerSource::Json(bytes) => Self::from_json(&bytes, &format!("`{origin}/tokenizer.json`"), &roles),
            TokenizerSource::Gguf(gguf) => {
                roles.bos = gguf.bos.or(roles.bos);
                Self::build(gguf::to_json(&gguf)?, "the GGUF file's tokenizer", &roles)
            }
        }
    }

    /// The tokenizer in a `tokenizer.json`, or in a folder that holds one.
    ///
    /// The end of a sequence comes from `config.json` or `tokenizer_config.json` beside it, if they are there.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if io::is_folder(path) { path.join("tokenizer.json") } else { path.to_owned() };
        let bytes = io::read_limited(&file, MAX_BYTES)?;
        let origin = file.display().to_string();
        let root = json::parse(&bytes, &origin)?;
        let mut roles = Roles::default();
        if let Some(folder) = file.parent() {
            for (name, read) in [
                ("config.json", json::roles_from_config as fn(&serde_json::Value, &serde_json::Value, &mut Roles)),
                ("tokenizer_config.json", json::roles_from_tokenizer_config),
            ] {
                let beside = folder.join(name);
                if io::is_file(&beside) {
                    let text = io::read_limited(&beside, MAX_BYTES)?;
                    read(&json::parse(&text, &beside.display().to_string())?, &root, &mut roles);
                }
            }
        }
        Self::build(root, &origin, &roles)
    }

    /// A GGUF file's tokenizer as the bytes of a `tokenizer.json`, which gives the same tokens.
    pub fn json_of(gguf: &GgufTokenizer) -> Result<Vec<u8>> {
        let json = gguf::to_json(gguf)?;
        serde_json::to_vec(&json).map_err(|error| Error::Format {
            origin: "the GGUF file's tokenizer".to_owned(),
            reason: error.to_string(),
        })
    }

    fn from_json(bytes: &[u8], origin: &str, roles: &Roles) -> Result<Self> {
        Self::build(json::parse(bytes, origin)?, origin, roles)
    }

    fn build(root: serde_json::Value, origin: &str, roles: &Roles) -> Result<Self> {
        let loaded = json::load(root, origin)?;
        let pieces = Pieces::new(&loaded)?;
        let tokens = pieces.len();
        if let Some(vocab_size) = roles.vocab_size.filter(|size| *size < tokens) {
            return Err(Error::MoreThanModel { tokens, vocab_size });
        }
        let special = |role: &'static str, id: u32| match loaded.model.id_to_token(id) {
            Some(text) => Ok(Special { id, text }),
            None => Err(Error::NoSuchSpecial { role, id, tokens }),
        };
        let mut prefix = loaded.prefix;
        prefix.dedup();
        let bos = prefix.last().copied().or(roles.bos).map(|id| special("begin-of-sequence", id)).transpose()?;
        let eos = roles.eos.first().map(|id| special("end-of-sequence", *id)).transpose()?;
        for id in &roles.eos {
            special("end-of-sequence", *id)?;
        }
        let mut seen = HashSet::new();
        let eos_ids = roles.eos.iter().copied().filter(|id| seen.insert(*id)).collect();
        Ok(Self(Arc::new(Inner {
            model: loaded.model,
            pieces,
            prefix,
            bos,
            eos,
            eos_ids,
            unknown: loaded.unknown,
            uncovered: loaded.uncovered,
        })))
    }

    /// The ids of `text`, after what the model's own rule puts in front (usually the begin-of-sequence token).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.encode_plain(text)?;
        let mut ids = Vec::with_capacity(self.0.prefix.len() + plain.len() + 1);
        ids.extend_from_slice(&self.0.prefix);
        ids.extend_from_slice(&plain);
        Ok(ids)
    }

    /// The ids of `text` alone.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let uncovered = &self.0.uncovered;
        if !uncovered.is_empty() && text.bytes().any(|byte| uncovered.contains(&byte)) {
            let is_lost = |c: &char| c.encode_utf8(&mut [0; 4]).bytes().any(|byte| uncovered.contains(&byte));
            return Err(Error::NoToken { character: text.chars().find(is_lost).unwrap_or_default() });
        }
        let encoding =
            self.0.model.encode_fast(text, false).map_err(|error| Error::Encode { reason: error.to_string() })?;
        let ids = encoding.get_ids();
        match ids.iter().find(|id| self.0.pieces.is_special(**id) && Some(**id) != self.0.unknown) {
            Some(id) => Err(Error::SpecialFromText { token: self.0.model.id_to_token(*id).unwrap_or_default() }),
            None => Ok(ids.to_vec()),
        }
    }

    /// What `encode` puts in front of every text.
    pub fn prefix(&self) -> &[u32] {
        &self.0.prefix
    }

    /// The text of `ids`, without special tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for id in ids {
            bytes.extend_from_slice(self.0.pieces.get(*id)?);
        }
        let skip = usize::from(self.0.pieces.drops_first_space() && bytes.first() == Some(&b' '));
        Ok(String::from_utf8_lossy(bytes.get(skip..).unwrap_or_default()).into_owned())
    }

    /// The begin-of-sequence token, whether or not `encode` puts it in front.
    pub fn bos(&self) -> Option<&Special> {
        self.0.bos.as_ref()
    }

    /// The token that ends a text in training.
    pub fn eos(&self) -> Option<&Special> {
        self.0.eos.as_ref()
    }

    /// Every token that ends a generated text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.0.eos_ids
    }

    /// The token that stands for characters the vocabulary lacks.
    pub fn unknown_id(&self) -> Option<u32> {
        self.0.unknown
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.len()
    }

    /// The token as the vocabulary spells it, such as `▁meat` or `</s>`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.model.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.model.token_to_id(token)
    }
}
