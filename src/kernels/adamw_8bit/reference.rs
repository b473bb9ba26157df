//! The plain loops of `adamw_8bit`.

use super::{BLOCK, State, keep_and_fresh, step_size_and_eps};
use crate::kernels::{AdamWStep, StateSegment};
use crate::quant::dynamic::{nearest, signed_map, unsigned_map};

pub(crate) fn update(
    params: &mut [f64],
    gradients: &[f64],
    state: &mut State<'_, f64>,
    segments: &[StateSegment],
    step: &AdamWStep,
) {
    for segment in segments {
        let range = segment.offset..segment.offset + segment.len;
        if !segment.eight_bit {
            let (m, v) = (&mut state.m[range.clone()], &mut state.v[range.clone()]);
            moments_and_update(&mut params[range.clone()], &gradients[range], m, v, step);
            continue;
        }
        for start in range.clone().step_by(BLOCK) {
            let block = start..range.end.min(start + BLOCK);
            let (absmax_m, absmax_v) = (&mut state.absmax_m[start / BLOCK], &mut state.absmax_v[start / BLOCK]);
            let (codes_m, codes_v) = (&mut state.codes_m[block.clone()], &mut state.codes_v[block.clone()]);
            let mut m: Vec<f64> =
                codes_m.iter().map(|&c| f64::from(signed_map()[usize::from(c)]) * *absmax_m).collect();
            let mut v: Vec<f64> =
                codes_v.iter().map(|&c| f64::from(unsigned_map()[usize::from(c)]) * *absmax_v).collect();
            moments_and_update(&mut params[block.clone()], &gradients[block], &mut m, &mut v, step);
            *absmax_m = m.iter().fold(0.0, |highest, m| highest.max(m.abs()));
            *absmax_v = v.iter().fold(0.0, |highest, v| highest.max(*v));
            for (code, m) in codes_m.iter_mut().zip(m) {
                *code = signed_code(m, *absmax_m);
            }
            for (code, v) in codes_v.iter_mut().zip(v) {
                *code = if *absmax_v > 0.0 { nearest(unsigned_map(), (v / *absmax_v) as f32) } else { 0 };
            }
        }
    }
}

/// The nearest code of `m / absmax`, moved by one where it would change the sign of `m`.
fn signed_code(m: f64, absmax: f64) -> u8 {
    let code = if absmax > 0.0 { nearest(signed_map(), (m / absmax) as f32) } else { nearest(signed_map(), 0.0) };
    let decoded = signed_map()[usize::from(code)];
    match (decoded.is_sign_negative(), m.is_sign_negative()) {
        _ if absmax == 0.0 => code,
        (true, false) => code + 1,
        (false, true) => code - 1,
        _ => code,
    }
}

fn moments_and_update(params: &mut [f64], gradients: &[f64], m: &mut [f64], v: &mut [f64], step: &AdamWStep) {
    let (step_size, eps) = step_size_and_eps(step);
    let [(keep_m, fresh_m), (keep_v, fresh_v)] =
        [step.beta1, step.beta2].map(keep_and_fresh).map(|(keep, fresh)| (f64::from(keep), f64::from(fresh)));
    for i in 0..params.len() {
        let g = gradients[i] * step.gradient_scale;
        if !g.is_finite() {
            (m[i], v[i]) = (0.0, 0.0);
            continue;
        }
        m[i] = keep_m * m[i] + fresh_m * g;
        v[i] = keep_v * v[i] + fresh_v * g * g;
        params[i] -= step_size * m[i] / (v[i].sqrt() + eps);
        params[i] *= 1.0 - step.lr * step.weight_decay;
    }
}
