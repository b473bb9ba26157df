//! The arithmetic of training: one `Backend` trait, one folder per operation.
//!
//! `Cpu` computes in f32 on all cores; `Reference` computes the same in f64 with plain loops and is the proof.

// rows and columns by number, as in the formulas
#![allow(clippy::needless_range_loop)]

mod backend;
mod cpu;
mod frozen;
mod matrix;
mod reference;
mod simd;
mod threads;

mod adamw;
mod adamw_8bit;
mod attention;
mod cross_entropy;
mod embed;
mod gather;
mod gemm;
mod linear;
mod lora;
mod rms_norm;
mod rope;
mod scale;
mod sum_squares;
mod swiglu;
#[cfg(test)]
mod testing;

pub(crate) use backend::same;
pub use backend::{AdamWStep, Attention, Backend, LoraGroup, LoraPart, StateSegment};
pub use cpu::Cpu;
pub use reference::Reference;

/// Why an operation refused its arguments.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{op}`: {what} is {got}, wanted {wanted}")]
    Size { op: &'static str, what: &'static str, got: usize, wanted: usize },
    #[error("`{op}`: index {index} is outside 0..{len}")]
    Index { op: &'static str, index: usize, len: usize },
    /// Of what grows with the model or the batch. A task's own panels and tiles, and what libraries take, still end the
    /// process; so does a system that promises memory it does not have (Linux kills with signal 9).
    #[error("out of memory: {op} asked for {bytes} bytes")]
    Memory { op: &'static str, bytes: usize },
}

pub type Result<T> = std::result::Result<T, Error>;
