//! `adamw` in f32: one pass over the parameters.

use pulp::Arch;

use super::{Pieces, in_order};
use crate::kernels::simd::vectorized;
use crate::kernels::threads::Threads;
use crate::kernels::{AdamWStep, StateSegment};

/// Parameters handed to a thread at a time.
const PIECE: usize = 16 * 1024;

pub(crate) fn update(
    (threads, arch): (&Threads, Arch),
    params: &mut [f32],
    gradients: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    segments: &[StateSegment],
    step: &AdamWStep,
) {
    let (mut params, mut m, mut v) = (Pieces::new(params), Pieces::new(m), Pieces::new(v));
    let mut tasks = Vec::new();
    for segment in in_order(segments) {
        let range = segment.offset..segment.offset + segment.len;
        let moments = m.take(range.clone()).chunks_mut(PIECE).zip(v.take(range.clone()).chunks_mut(PIECE));
        let parameters = params.take(range.clone()).chunks_mut(PIECE).zip(gradients[range].chunks(PIECE));
        tasks.extend(parameters.zip(moments));
    }
    threads.each(tasks, |((params, gradients), (m, v))| {
        vectorized(
            arch,
            #[inline(always)]
            || piece(params, gradients, m, v, step),
        );
    });
}

#[inline(always)]
fn piece(params: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32], step: &AdamWStep) {
    let correction1 = 1.0 - step.beta1.powf(step.step as f64);
    let correction2 = (1.0 - step.beta2.powf(step.step as f64)).sqrt();
    let (beta1, beta2) = (step.beta1 as f32, step.beta2 as f32);
    let (fresh1, fresh2) = ((1.0 - step.beta1) as f32, (1.0 - step.beta2) as f32);
    let keep = (1.0 - step.lr * step.weight_decay) as f32;
    let step_size = (step.lr / correction1) as f32;
    let (root_factor, eps) = ((1.0 / correction2) as f32, step.eps as f32);
    let scale = step.gradient_scale as f32;
    for (((p, g), m), v) in params.iter_mut().zip(gradients).zip(m).zip(v) {
        let g = g * scale;
        *m = beta1 * *m + fresh1 * g;
        *v = beta2 * *v + fresh2 * g * g;
        *p = *p * keep - step_size * *m / (v.sqrt() * root_factor + eps);
    }
}
