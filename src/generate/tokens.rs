//! The token loop.

use std::ops::ControlFlow;

use crate::tokenizer::{Stream, Tokenizer};

use super::stop::Stops;
use super::{Error, Result, Sampling};

/// A model that reads a text token by token and says what may follow.
pub trait Decoder {
    /// Reads `ids` after all ids read before and returns the logits of the next token, one a vocabulary entry.
    fn read(&mut self, ids: &[u32]) -> std::result::Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;
    /// Tokens a text may have.
    fn context(&self) -> usize;
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_new_tokens: 64, sampling: Sampling::default(), stop: Vec::new() }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndOfText,
    /// A stop string appeared.
    Stop,
    /// `max_new_tokens` were written.
    Length,
    /// Whoever was shown the text had enough.
    Stopped,
}

/// A text without its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    pub text: String,
    /// The tokens chosen, the one that ended the text included.
    pub ids: Vec<u32>,
    pub finish: Finish,
}

/// Continues `prompt`; `show` gets the text piece by piece, never half a character, and can end it.
///
/// The token that ends a text is never shown. Token `n` depends on logits, history, seed and `n` alone.
pub fn generate(
    decoder: &mut dyn Decoder,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &Options,
    show: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut ids = tokenizer.encode(prompt)?;
    check_context(&ids, options, decoder.context())?;
    let prompt_len = ids.len();
    let ends = tokenizer.eos_ids();
    let mut stream = Stream::after_prompt(tokenizer);
    let mut stops = Stops::new(&options.stop);
    let mut text = String::new();
    let mut finish = Finish::Length;
    let mut unread = 0;
    for position in 0..options.max_new_tokens as u64 {
        let logits = decoder.read(&ids[unread..]).map_err(Error::Model)?;
        unread = ids.len();
        let next = options.sampling.choose(&logits, &ids, position)?;
        ids.push(next);
        if ends.contains(&next) {
            finish = Finish::EndOfText;
            break;
        }
        if let Some(piece) = stream.push(next)? {
            let shown = stops.push(&piece);
            let is_enough = add(&mut text, &shown.text, show).is_break();
            if shown.ended || is_enough {
                let finish = if shown.ended { Finish::Stop } else { Finish::Stopped };
                return Ok(Generated { text, ids: ids.split_off(prompt_len), finish });
            }
        }
    }
    if let Some(rest) = stream.finish() {
        let shown = stops.push(&rest);
        let is_enough = add(&mut text, &shown.text, show).is_break();
        if shown.ended || is_enough {
            let finish = if shown.ended { Finish::Stop } else { Finish::Stopped };
            return Ok(Generated { text, ids: ids.split_off(prompt_len), finish });
        }
    }
    let _ = add(&mut text, &stops.finish(), show); // the text is over either way
    Ok(Generated { text, ids: ids.split_off(prompt_len), finish })
}

fn add(text: &mut String, piece: &str, show: &mut dyn FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
    if piece.is_empty() {
        return ControlFlow::Continue(());
    }
    text.push_str(piece);
    show(piece)
}

fn check_context(ids: &[u32], options: &Options, context: usize) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let (prompt, new) = (ids.len(), options.max_new_tokens);
    if prompt.saturating_add(new) > context { Err(Error::Context { prompt, new, context }) } else { Ok(()) }
}
