//! What leaves the program: PEFT adapters, written, read back and compared before anybody relies on them.

mod adapter;
mod error;
mod tokenizer;

pub use adapter::{Adapter, Stored, read, write};
pub use error::{Error, Result};
pub use tokenizer::tokenizer_files;
