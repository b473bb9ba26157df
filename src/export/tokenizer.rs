//! The tokenizer beside an adapter, so that the folder can be used by itself.

use serde_json::json;

use crate::tokenizer::{Special, Tokenizer};

/// The base's own `tokenizer.json` and a `tokenizer_config.json` with the roles its tokens have.
pub fn tokenizer_files(json: &[u8], tokenizer: &Tokenizer, model_max_length: usize) -> [(&'static str, Vec<u8>); 2] {
    let text = |special: Option<&Special>| special.map(|special| special.text.clone());
    let config = json!({
        "bos_token": text(tokenizer.bos()),
        "clean_up_tokenization_spaces": false,
        "eos_token": text(tokenizer.eos()),
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokenizer.unknown_id().and_then(|id| tokenizer.token(id)),
    });
    [("tokenizer.json", json.to_vec()), ("tokenizer_config.json", format!("{config:#}\n").into_bytes())]
}
