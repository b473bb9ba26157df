//! Model and adapter files: safetensors, bitsandbytes 4-bit, GGUF, PEFT. Read here and nowhere else.
//!
//! Whatever a file holds, the answer is a value or an error that names the file and the part that is wrong.

pub mod adapter;
mod bnb;
mod checkpoint;
mod config;
mod error;
mod gguf;
mod rope;
mod safetensors;
mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use error::{Error, Result};
pub use rope::RopeScaling;
pub use tokenizer::{GgufTokenizer, TokenizerSource};
