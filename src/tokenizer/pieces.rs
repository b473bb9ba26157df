//! The bytes each token stands for.

use super::json::Loaded;
use super::{Error, Result};

/// How the vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every character of a token is one byte (GPT-2's table).
    ByteLevel,
    /// `▁` is a space and `<0x0A>` a byte (SentencePiece); a text's first space may be the tokenizer's own.
    Spaces { drops_first_space: bool, has_bytes: bool },
}

/// Token id to bytes; special tokens have none.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<Option<Box<[u8]>>>,
    special: Vec<bool>,
    spelling: Spelling,
}

impl Pieces {
    pub(super) fn new(loaded: &Loaded) -> Result<Self> {
        let mut bytes: Vec<Option<Box<[u8]>>> = vec![None; loaded.size];
        let mut special = vec![false; loaded.size];
        for (token, id) in loaded.model.get_vocab(false) {
            if let Some(slot) = bytes.get_mut(id as usize) {
                *slot = Some(spell(&token, loaded.spelling).into());
            }
        }
        for (id, token) in loaded.model.get_added_tokens_decoder() {
            if let (Some(slot), Some(flag)) = (bytes.get_mut(id as usize), special.get_mut(id as usize)) {
                *flag = token.special;
                let text = if token.special { String::new() } else { token.content.replace('▁', " ") };
                *slot = Some(text.into_bytes().into());
            }
        }
        Ok(Self { bytes, special, spelling: loaded.spelling })
    }

    /// One more than the highest id.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn get(&self, id: u32) -> Result<&[u8]> {
        match self.bytes.get(id as usize) {
            Some(Some(bytes)) => Ok(bytes),
            _ => Err(Error::UnknownId { id, tokens: self.len() }),
        }
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(super) fn drops_first_space(&self) -> bool {
        matches!(self.spelling, Spelling::Spaces { drops_first_space: true, .. })
    }
}

/// The bytes of one vocabulary entry.
fn spell(token: &str, spelling: Spelling) -> Vec<u8> {
    match spelling {
        Spelling::ByteLevel => {
            token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
        }
        Spelling::Spaces { has_bytes, .. } => match byte_token(token).filter(|_| has_bytes) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        },
    }
}

/// The byte of a token like `<0x0A>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The character GPT-2's table gives to a byte: itself if printable, else one from U+0100 on.
pub(super) fn char_of(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !is_printable(*b)).count() as u32;
    char::from_u32(256 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => (0..=255u8).filter(|b| !is_printable(*b)).nth(code.checked_sub(256)? as usize),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}
