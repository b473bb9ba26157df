//! Text token by token, for generation.

use super::{Result, Tokenizer};

/// Turns tokens into text as they come: the pieces joined are what `decode` gives for all of them.
///
/// A character whose bytes are spread over several tokens is held back until it is whole.
#[derive(Clone, Debug)]
pub struct Stream {
    tokenizer: Tokenizer,
    held: Vec<u8>,
    drops_next_space: bool,
}

impl Stream {
    /// A stream that starts a text.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let drops_next_space = tokenizer.0.pieces.drops_first_space();
        Self { tokenizer: tokenizer.clone(), held: Vec::new(), drops_next_space }
    }

    /// A stream that goes on after a prompt: its first space belongs to the text.
    pub fn after_prompt(tokenizer: &Tokenizer) -> Self {
        Self { drops_next_space: false, ..Self::new(tokenizer) }
    }

    /// The text that `id` completes; `None` for special tokens and unfinished characters.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let mut bytes = self.tokenizer.0.pieces.get(id)?;
        if self.drops_next_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.drops_next_space = false;
        }
        self.held.extend_from_slice(bytes);
        Ok(Some(self.take_whole()).filter(|text| !text.is_empty()))
    }

    /// What is still held back; an unfinished character becomes U+FFFD. The stream then starts afresh, inside the text.
    pub fn finish(&mut self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        Some(text).filter(|text| !text.is_empty())
    }

    /// Removes and returns everything up to an unfinished character at the end.
    fn take_whole(&mut self) -> String {
        let mut end = self.held.len();
        for chunk in self.held.utf8_chunks() {
            let invalid = chunk.invalid();
            let is_last = invalid.as_ptr_range().end == self.held.as_ptr_range().end;
            if is_last && !invalid.is_empty() && is_unfinished(invalid) {
                end -= invalid.len();
            }
        }
        let text = String::from_utf8_lossy(self.held.get(..end).unwrap_or_default()).into_owned();
        self.held.drain(..end);
        text
    }
}

/// Whether more bytes could still make a character of these.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).err().is_some_and(|error| error.error_len().is_none())
}
