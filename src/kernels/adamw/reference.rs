//! The plain loop of `adamw`.

use crate::kernels::{AdamWStep, StateSegment};

pub(crate) fn update(
    params: &mut [f64],
    gradients: &[f64],
    m: &mut [f64],
    v: &mut [f64],
    segments: &[StateSegment],
    step: &AdamWStep,
) {
    let correction1 = 1.0 - step.beta1.powf(step.step as f64);
    let correction2 = (1.0 - step.beta2.powf(step.step as f64)).sqrt();
    for i in segments.iter().flat_map(|segment| segment.offset..segment.offset + segment.len) {
        let g = gradients[i] * step.gradient_scale;
        params[i] *= 1.0 - step.lr * step.weight_decay;
        m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * g;
        v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * g * g;
        params[i] -= step.lr / correction1 * m[i] / (v[i].sqrt() / correction2 + step.eps);
    }
}
