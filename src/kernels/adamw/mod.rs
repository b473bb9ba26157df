//! torch's AdamW on the segments of a flat buffer: decay first, then the moments, then the update.
//!
//! `g = c·grad`, `p −= lr·wd·p`, `m = β1·m + (1−β1)·g`, `v = β2·v + (1−β2)·g²`,
//! `p −= lr/(1−β1ᵗ)·m / (√v/√(1−β2ᵗ) + eps)`. Source: torch.optim.AdamW; Loshchilov & Hutter 2017, arXiv:1711.05101.

pub(super) mod cpu;
pub(super) mod reference;
#[cfg(test)]
pub(in crate::kernels) mod tests;

use super::{Error, Result, StateSegment, same};

/// Checks the lengths and that every segment lies inside the buffers.
pub(super) fn check<F>(params: &[F], gradients: &[F], m: &[F], v: &[F], segments: &[StateSegment]) -> Result<()> {
    same("adamw", "the length of gradients", gradients.len(), params.len())?;
    for segment in segments {
        check_end("adamw", segment, params.len().min(m.len()).min(v.len()))?;
    }
    Ok(())
}

/// Fails when a segment ends after `len`.
pub(super) fn check_end(op: &'static str, segment: &StateSegment, len: usize) -> Result<()> {
    let end = segment.offset.saturating_add(segment.len);
    if end <= len { Ok(()) } else { Err(Error::Index { op, index: end, len }) }
}
