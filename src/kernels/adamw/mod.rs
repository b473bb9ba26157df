//! torch's AdamW on the segments of a flat buffer: decay first, then the moments, then the update.
//!
//! `g = c·grad`, `p −= lr·wd·p`, `m = β1·m + (1−β1)·g`, `v = β2·v + (1−β2)·g²`,
//! `p −= lr/(1−β1ᵗ)·m / (√v/√(1−β2ᵗ) + eps)`. Source: torch.optim.AdamW; Loshchilov & Hutter 2017, arXiv:1711.05101.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
pub(in crate::kernels) mod tests;

use std::ops::Range;

use super::{Error, Result, StateSegment, same};

/// Checks the lengths and that every segment lies inside the buffers.
pub(super) fn check<F>(params: &[F], gradients: &[F], m: &[F], v: &[F], segments: &[StateSegment]) -> Result<()> {
    same("adamw", "the length of gradients", gradients.len(), params.len())?;
    check_apart("adamw", segments)?;
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

/// Segments in the order of the buffer.
pub(super) fn in_order(segments: &[StateSegment]) -> Vec<StateSegment> {
    let mut segments = segments.to_vec();
    segments.sort_by_key(|segment| segment.offset);
    segments
}

/// Fails when two segments share a parameter.
pub(super) fn check_apart(op: &'static str, segments: &[StateSegment]) -> Result<()> {
    for pair in in_order(segments).windows(2) {
        let end = pair[0].offset.saturating_add(pair[0].len);
        if pair[1].offset < end {
            return Err(Error::Index { op, index: end, len: pair[1].offset });
        }
    }
    Ok(())
}

/// Lends ascending pieces of a buffer, so that all segments' pieces are shared out to the threads at once.
pub(super) struct Pieces<'a, T> {
    rest: &'a mut [T],
    passed: usize,
}

impl<'a, T> Pieces<'a, T> {
    pub(super) fn new(rest: &'a mut [T]) -> Self {
        Self { rest, passed: 0 }
    }

    pub(super) fn take(&mut self, range: Range<usize>) -> &'a mut [T] {
        let (_, rest) = std::mem::take(&mut self.rest).split_at_mut(range.start - self.passed);
        let (piece, rest) = rest.split_at_mut(range.len());
        (self.rest, self.passed) = (rest, range.end);
        piece
    }
}
