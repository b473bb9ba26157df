//! Text in, text out: generation, and how likely a word is.

use std::error::Error as StdError;
use std::ops::ControlFlow;

use crate::engine::{Batch, IGNORE};
use crate::generate::{self, Decoder, Generated, Options};

use super::runner::Cache;
use super::{Error, Model, Result};

impl Model {
    /// Continues `prompt`; `show` gets the text piece by piece. The prompt is not part of what comes back.
    pub fn generate(
        &self,
        prompt: &str,
        options: &Options,
        show: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let cache = self.runner().cache();
        let mut reader = Reader { model: self, cache };
        Ok(generate::generate(&mut reader, self.tokenizer(), prompt, options, show)?)
    }

    /// The probability that `word` follows `prompt`: the product over the word's tokens, in [0, 1].
    pub fn probability(&self, prompt: &str, word: &str) -> Result<f64> {
        if word.trim().is_empty() {
            return Err(Error::NoWord);
        }
        let whole = self.tokenizer().encode(&join(prompt, word))?;
        let ahead = self.tokenizer().encode(prompt.trim_end())?;
        // Where the tokens of the prompt stay the same, what is left spells the word.
        let shared = ahead.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        if shared == whole.len() || shared == 0 {
            return Err(Error::NoWord);
        }
        let (ids, next) = (&whole[..whole.len() - 1], &whole[1..]);
        let targets: Vec<i32> = (1..)
            .zip(next)
            .map(|(position, id)| if position >= shared { i32::try_from(*id).unwrap_or(IGNORE) } else { IGNORE })
            .collect();
        let borders = [0, u32::try_from(ids.len()).unwrap_or(u32::MAX)];
        let log_probs = self.log_probs(&Batch { ids, cu_seqlens: &borders, targets: &targets })?;
        Ok(log_probs.iter().sum::<f64>().exp())
    }
}

/// One space between them, unless the word begins with its own or with punctuation.
fn join(prompt: &str, word: &str) -> String {
    let attached = word.starts_with(|c: char| c.is_whitespace() || c.is_ascii_punctuation());
    format!("{}{}{word}", prompt.trim_end(), if attached { "" } else { " " })
}

/// One text being generated. Takes the model's lock token by token, so that whoever is shown the text may use it.
struct Reader<'a> {
    model: &'a Model,
    cache: Cache,
}

impl Decoder for Reader<'_> {
    fn read(&mut self, ids: &[u32]) -> std::result::Result<Vec<f32>, Box<dyn StdError + Send + Sync>> {
        Ok(self.model.runner().decode(ids, &mut self.cache)?)
    }

    fn context(&self) -> usize {
        self.model.max_seq_length()
    }
}
