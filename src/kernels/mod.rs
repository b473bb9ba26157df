//! The arithmetic of training: one `Backend` trait, one folder per operation.
//!
//! `Cpu` computes in f32 on all cores; `Reference` computes the same in f64 with plain loops and is the proof.

mod backend;

pub(crate) use backend::same;
pub use backend::{AdamWStep, Attention, Backend, LoraGroup, LoraPart, StateSegment};

/// Why an operation refused its arguments.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{op}`: {what} is {got}, wanted {wanted}")]
    Size { op: &'static str, what: &'static str, got: usize, wanted: usize },
    #[error("`{op}`: index {index} is outside 0..{len}")]
    Index { op: &'static str, index: usize, len: usize },
    #[error("out of memory: {op} asked for {bytes} bytes")]
    Memory { op: &'static str, bytes: usize },
}

pub type Result<T> = std::result::Result<T, Error>;
