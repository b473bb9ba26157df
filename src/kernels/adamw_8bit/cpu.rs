//! `adamw_8bit` in f32: one pass over blocks of 256 that stay in the first cache.

use pulp::Arch;

use super::codes::{SIGNED, UNSIGNED};
use super::{BLOCK, State, keep_and_fresh, step_size_and_eps};
use crate::kernels::simd::vectorized;
use crate::kernels::threads::Threads;
use crate::kernels::{AdamWStep, StateSegment};
use crate::quant::dynamic::{signed_map, unsigned_map};

/// Blocks handed to a thread at a time.
const PIECE: usize = 32;

pub(crate) fn update(
    (threads, arch): (&Threads, Arch),
    params: &mut [f32],
    gradients: &[f32],
    state: &mut State<'_, f32>,
    segments: &[StateSegment],
    step: &AdamWStep,
) {
    let constants = Constants::new(step);
    for segment in segments {
        let range = segment.offset..segment.offset + segment.len;
        let len = PIECE * BLOCK;
        let parameters = params[range.clone()].chunks_mut(len).zip(gradients[range.clone()].chunks(len));
        if !segment.eight_bit {
            let moments = state.m[range.clone()].chunks_mut(len).zip(state.v[range].chunks_mut(len));
            threads.each(parameters.zip(moments).collect(), |((params, gradients), (m, v))| {
                vectorized(
                    arch,
                    #[inline(always)]
                    || moments_and_update(params, gradients, m, v, &constants),
                );
            });
            continue;
        }
        let codes = state.codes_m[range.clone()].chunks_mut(len).zip(state.codes_v[range.clone()].chunks_mut(len));
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let absmax = state.absmax_m[blocks.clone()].chunks_mut(PIECE).zip(state.absmax_v[blocks].chunks_mut(PIECE));
        threads.each(parameters.zip(codes.zip(absmax)).collect(), |((params, gradients), (codes, absmax))| {
            let blocks = params.chunks_mut(BLOCK).zip(gradients.chunks(BLOCK));
            let codes = codes.0.chunks_mut(BLOCK).zip(codes.1.chunks_mut(BLOCK));
            let absmax = absmax.0.iter_mut().zip(absmax.1);
            for (((params, gradients), codes), absmax) in blocks.zip(codes).zip(absmax) {
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        block(
                            params,
                            gradients,
                            (&mut *codes.0, &mut *codes.1),
                            (&mut *absmax.0, &mut *absmax.1),
                            &constants,
                        )
                    },
                );
            }
        });
    }
}

/// The step's factors, rounded once.
struct Constants {
    beta1: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    step_size: f32,
    eps: f32,
    keep: f32,
    scale: f32,
}

impl Constants {
    fn new(step: &AdamWStep) -> Self {
        let (step_size, eps) = step_size_and_eps(step);
        let [(beta1, fresh1), (beta2, fresh2)] = [step.beta1, step.beta2].map(keep_and_fresh);
        Self {
            beta1,
            beta2,
            fresh1,
            fresh2,
            step_size: step_size as f32,
            eps: eps as f32,
            keep: (1.0 - step.lr * step.weight_decay) as f32,
            scale: step.gradient_scale as f32,
        }
    }
}

#[inline(always)]
fn block(
    params: &mut [f32],
    gradients: &[f32],
    (codes_m, codes_v): (&mut [u8], &mut [u8]),
    (absmax_m, absmax_v): (&mut f32, &mut f32),
    constants: &Constants,
) {
    let (mut m, mut v) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
    for (m, code) in m.iter_mut().zip(&*codes_m) {
        *m = signed_map()[usize::from(*code)] * *absmax_m;
    }
    for (v, code) in v.iter_mut().zip(&*codes_v) {
        *v = unsigned_map()[usize::from(*code)] * *absmax_v;
    }
    moments_and_update(params, gradients, &mut m, &mut v, constants);
    let len = params.len();
    *absmax_m = m[..len].iter().fold(0.0, |highest, m| highest.max(m.abs()));
    *absmax_v = v[..len].iter().fold(0.0, |highest, v| highest.max(*v));
    for (code, m) in codes_m.iter_mut().zip(m) {
        *code = signed_code(m, *absmax_m);
    }
    for (code, v) in codes_v.iter_mut().zip(v) {
        *code = if *absmax_v > 0.0 { UNSIGNED.nearest(v / *absmax_v) } else { 0 };
    }
}

/// The nearest code of `m / absmax`, moved by one where it would change the sign of `m`.
fn signed_code(m: f32, absmax: f32) -> u8 {
    if absmax == 0.0 {
        return SIGNED.nearest(0.0);
    }
    let code = SIGNED.nearest(m / absmax);
    match (signed_map()[usize::from(code)].is_sign_negative(), m.is_sign_negative()) {
        (true, false) => code + 1,
        (false, true) => code - 1,
        _ => code,
    }
}

#[inline(always)]
fn moments_and_update(params: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32], constants: &Constants) {
    for (((p, g), m), v) in params.iter_mut().zip(gradients).zip(m).zip(v) {
        let g = g * constants.scale;
        let is_finite = g.is_finite();
        let g = if is_finite { g } else { 0.0 };
        let new_m = constants.beta1 * *m + constants.fresh1 * g;
        let new_v = constants.beta2 * *v + constants.fresh2 * g * g;
        let new_p = (*p - constants.step_size * new_m / (new_v.sqrt() + constants.eps)) * constants.keep;
        *m = if is_finite { new_m } else { 0.0 };
        *v = if is_finite { new_v } else { 0.0 };
        *p = if is_finite { new_p } else { *p };
    }
}
