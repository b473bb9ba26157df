//! bitsandbytes' AdamW with blockwise 8-bit moments: update first, then decay.
//!
//! Blocks of 256 parameters from a segment's start. A moment is `map[code]·absmax` of its block, by the dynamic map
//! (signed for m, unsigned for v). Per block, with `g = c·grad`:
//! `m = β1·m + (1−β1)·g`, `v = β2·v + (1−β2)·g²`, both in full precision; new `absmax = max|·|` over the block;
//! `p −= lr·√(1−β2ᵗ)/(1−β1ᵗ) · m / (√v + eps·√(1−β2ᵗ))`, then `p *= 1 − lr·wd`; then the nearest codes of `m/absmax`
//! and `v/absmax`, and where the decoded m has the other sign the code moves by one towards m's sign.
//! An element whose gradient is not finite keeps its parameter, and its moments become zero. A block whose moments are
//! all zero gets the codes of zero. Segments that are not `eight_bit` keep `m` and `v` themselves, by the same rule.
//! Source: bitsandbytes 95f9af30, csrc/kernels.cu lines 914-1147. Its CPU path decays before the update; we follow CUDA.

mod codes;
pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::adamw::{check_apart, check_end};
use super::{AdamWStep, Result, StateSegment, same};

/// Parameters that share one `absmax`.
pub(super) const BLOCK: usize = 256;

/// The state of the optimizer, borrowed for one step.
pub(super) struct State<'a, F> {
    pub codes_m: &'a mut [u8],
    pub codes_v: &'a mut [u8],
    pub absmax_m: &'a mut [F],
    pub absmax_v: &'a mut [F],
    pub m: &'a mut [F],
    pub v: &'a mut [F],
}

/// Lengths of the buffers of one step; of two that belong together, the shorter.
pub(super) struct Lens {
    pub params: usize,
    pub gradients: usize,
    pub codes: usize,
    pub absmax: usize,
    pub full: usize,
}

/// Checks the lengths, and that 8-bit segments start at a block.
pub(super) fn check<F>(params: &[F], gradients: &[F], state: &State<'_, F>, segments: &[StateSegment]) -> Result<()> {
    let lens = Lens {
        params: params.len(),
        gradients: gradients.len(),
        codes: state.codes_m.len().min(state.codes_v.len()),
        absmax: state.absmax_m.len().min(state.absmax_v.len()),
        full: state.m.len().min(state.v.len()),
    };
    check_lens(&lens, segments)
}

pub(super) fn check_lens(lens: &Lens, segments: &[StateSegment]) -> Result<()> {
    let op = "adamw_8bit";
    same(op, "the length of gradients", lens.gradients, lens.params)?;
    check_apart(op, segments)?;
    for segment in segments {
        check_end(op, segment, lens.params)?;
        if segment.eight_bit {
            same(op, "the offset of a segment modulo 256", segment.offset % BLOCK, 0)?;
            check_end(op, segment, lens.codes)?;
            check_end(op, segment, lens.absmax.saturating_mul(BLOCK))?;
        } else {
            check_end(op, segment, lens.full)?;
        }
    }
    Ok(())
}

/// The two factors of the update: `lr·√(1−β2ᵗ)/(1−β1ᵗ)` and `eps·√(1−β2ᵗ)`.
///
/// Powers of the β of `keep_and_fresh`, as in the kernel: those of 0.999 itself make the first update 6e-6 too long.
pub(super) fn step_size_and_eps(step: &AdamWStep) -> (f64, f64) {
    let [correction1, correction2] =
        [step.beta1, step.beta2].map(|beta| 1.0 - f64::from(beta as f32).powf(step.step as f64));
    let correction2 = correction2.sqrt();
    (step.lr * correction2 / correction1, step.eps * correction2)
}

/// A factor β and `1 − β` as bitsandbytes' kernels have them: rounded to f32 first, which moves `1 − 0.999` by 1.3e-5 of it.
pub(super) fn keep_and_fresh(beta: f64) -> (f32, f32) {
    (beta as f32, 1.0 - beta as f32)
}
