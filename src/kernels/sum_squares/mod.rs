//! The sum of squares of a flat buffer, from which the caller takes the gradient's norm.
//!
//! Summed in f64 in blocks of fixed length, so the result does not depend on the number of threads.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;
