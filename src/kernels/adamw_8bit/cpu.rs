//! `adamw_8bit` in f32: one pass over blocks of 256 that stay in the first cache.

use pulp::Arch;

use super::super::adamw::{Pieces, in_order};
use super::codes::{Codes, SIGNED, UNSIGNED};
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
    let len = PIECE * BLOCK;
    let mut params = Pieces::new(params);
    let (mut m, mut v) = (Pieces::new(state.m), Pieces::new(state.v));
    let (mut codes_m, mut codes_v) = (Pieces::new(state.codes_m), Pieces::new(state.codes_v));
    let (mut absmax_m, mut absmax_v) = (Pieces::new(state.absmax_m), Pieces::new(state.absmax_v));
    let mut tasks = Vec::new();
    for segment in in_order(segments) {
        let range = segment.offset..segment.offset + segment.len;
        let parameters = params.take(range.clone()).chunks_mut(len).zip(gradients[range.clone()].chunks(len));
        if segment.eight_bit {
            let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
            let codes = codes_m.take(range.clone()).chunks_mut(len).zip(codes_v.take(range).chunks_mut(len));
            let absmax_m = absmax_m.take(blocks.clone()).chunks_mut(PIECE);
            let absmax = absmax_m.zip(absmax_v.take(blocks).chunks_mut(PIECE));
            tasks.extend(
                parameters
                    .zip(codes.zip(absmax))
                    .map(|(parameters, (codes, absmax))| (parameters, Moments::EightBit { codes, absmax })),
            );
        } else {
            let moments = m.take(range.clone()).chunks_mut(len).zip(v.take(range).chunks_mut(len));
            tasks.extend(parameters.zip(moments).map(|(parameters, (m, v))| (parameters, Moments::Full(m, v))));
        }
    }
    threads.each(tasks, |((params, gradients), moments)| match moments {
        Moments::Full(m, v) => vectorized(
            arch,
            #[inline(always)]
            || moments_and_update(params, gradients, m, v, &constants),
        ),
        Moments::EightBit { codes, absmax } => {
            let blocks = params.chunks_mut(BLOCK).zip(gradients.chunks(BLOCK));
            let codes = codes.0.chunks_mut(BLOCK).zip(codes.1.chunks_mut(BLOCK));
            let absmax = absmax.0.iter_mut().zip(absmax.1);
            for (((params, gradients), (codes_m, codes_v)), (absmax_m, absmax_v)) in blocks.zip(codes).zip(absmax) {
                vectorized(
                    arch,
                    #[inline(always)]
                    || block(params, gradients, (codes_m, codes_v), (absmax_m, absmax_v), &constants),
                );
            }
        }
    });
}

/// The moments of a task's parameters.
enum Moments<'a> {
    Full(&'a mut [f32], &'a mut [f32]),
    EightBit { codes: (&'a mut [u8], &'a mut [u8]), absmax: (&'a mut [f32], &'a mut [f32]) },
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
    let (signed, unsigned) = (signed_map(), unsigned_map());
    let (signed_codes, unsigned_codes) = (&*SIGNED, &*UNSIGNED);
    for (m, code) in m.iter_mut().zip(&*codes_m) {
        *m = signed[usize::from(*code)] * *absmax_m;
    }
    for (v, code) in v.iter_mut().zip(&*codes_v) {
        *v = unsigned[usize::from(*code)] * *absmax_v;
    }
    moments_and_update(params, gradients, &mut m, &mut v, constants);
    let len = params.len();
    *absmax_m = m[..len].iter().fold(0.0, |highest, m| highest.max(m.abs()));
    *absmax_v = v[..len].iter().fold(0.0, |highest, v| highest.max(*v));
    for (code, m) in codes_m.iter_mut().zip(m) {
        *code =
            if *absmax_m > 0.0 { signed_code(signed, signed_codes, m, *absmax_m) } else { signed_codes.nearest(0.0) };
    }
    for (code, v) in codes_v.iter_mut().zip(v) {
        *code = if *absmax_v > 0.0 { unsigned_codes.nearest(v / *absmax_v) } else { 0 };
    }
}

/// The nearest code of `m / absmax`, moved by one where it would change the sign of `m`.
#[inline(always)]
fn signed_code(map: &[f32; 256], codes: &Codes, m: f32, absmax: f32) -> u8 {
    let code = codes.nearest(m / absmax);
    let is_negative = map[usize::from(code)].is_sign_negative();
    let up = is_negative && m.is_sign_positive();
    let down = !is_negative && m.is_sign_negative();
    code + u8::from(up) - u8::from(down)
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
