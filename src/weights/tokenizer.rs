/// A model's own tokenizer, as its files hold it.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// The bytes of `tokenizer.json`.
    Json(Vec<u8>),
    /// The `tokenizer.ggml.*` keys of a GGUF file.
    Gguf(GgufTokenizer),
}

/// The tokenizer inside a GGUF file; `None` where the file says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `llama` (SentencePiece with scores) or `gpt2` (byte-level BPE with merges).
    pub model: String,
    /// Which rule splits text before BPE, such as `smollm` or `tekken`.
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    /// One per token, or empty.
    pub scores: Vec<f32>,
    /// One per token, or empty: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    pub merges: Vec<String>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// End of turn, for chat models.
    pub eot: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    /// Whether SentencePiece puts a space before the text.
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<String>,
}
