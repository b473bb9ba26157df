//! The tokenizer beside an adapter, so that the folder can be used by itself.

use std::path::Path;

use serde_json::json;

use crate::io;
use crate::tokenizer::{Special, Tokenizer};

use super::Result;

/// Writes the base's own `tokenizer.json` and a `tokenizer_config.json` with the roles its tokens have.
pub fn write_tokenizer(dir: &Path, json: &[u8], tokenizer: &Tokenizer, model_max_length: usize) -> Result<()> {
    let text = |special: Option<&Special>| special.map(|special| special.text.clone());
    let config = json!({
        "bos_token": text(tokenizer.bos()),
        "clean_up_tokenization_spaces": false,
        "eos_token": text(tokenizer.eos()),
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokenizer.unknown_id().and_then(|id| tokenizer.token(id)),
    });
    let config = format!("{config:#}\n");
    io::write_folder(dir, &[("tokenizer.json", json), ("tokenizer_config.json", config.as_bytes())])?;
    Ok(())
}
