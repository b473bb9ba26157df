//! The formulas: `lr(t) = lr · factor(t)`, t the 0-based optimizer step, W warm-up steps, T all steps.

use std::f64::consts::PI;

/// How a warm-up or a decay bends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    Linear,
    Cosine,
    OneMinusSqrt,
}

/// One schedule with its options filled in; counts are whole numbers held as f64.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Factor {
    Constant,
    ConstantWithWarmup { warmup: f64 },
    Linear { warmup: f64, total: f64 },
    Cosine { warmup: f64, total: f64, cycles: f64, minimum: f64 },
    CosineWithRestarts { warmup: f64, total: f64, cycles: f64 },
    Polynomial { warmup: f64, total: f64, power: f64, lr_end: f64, lr: f64 },
    InverseSqrt { warmup: f64, timescale: f64 },
    CosineWarmup { warmup: f64, total: f64, cycles: f64, minimum: f64, warmup_lr_rate: Option<f64> },
    WarmupStableDecay(WarmupStableDecay),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct WarmupStableDecay {
    pub warmup: f64,
    pub stable: f64,
    pub decay: f64,
    pub warmup_shape: Shape,
    pub decay_shape: Shape,
    pub minimum: f64,
    pub cycles: f64,
}

impl Factor {
    pub(super) fn at(&self, t: f64) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::ConstantWithWarmup { warmup } => rising(t, warmup).unwrap_or(1.0),
            Self::Linear { warmup, total } => {
                rising(t, warmup).unwrap_or_else(|| ((total - t) / (total - warmup).max(1.0)).max(0.0))
            }
            Self::Cosine { warmup, total, cycles, minimum } => {
                rising(t, warmup).unwrap_or_else(|| lifted(cosine(cycles, progress(t, warmup, total)), minimum))
            }
            Self::CosineWithRestarts { warmup, total, cycles } => {
                rising(t, warmup).unwrap_or_else(|| restarts(cycles, progress(t, warmup, total)))
            }
            Self::Polynomial { warmup, total, power, lr_end, lr } => rising(t, warmup).unwrap_or_else(|| {
                if t > total {
                    return lr_end / lr;
                }
                let remaining = 1.0 - (t - warmup) / (total - warmup);
                ((lr - lr_end) * remaining.powf(power) + lr_end) / lr
            }),
            Self::InverseSqrt { warmup, timescale } => {
                rising(t, warmup).unwrap_or_else(|| 1.0 / ((t + timescale - warmup) / timescale).sqrt())
            }
            Self::CosineWarmup { warmup, total, cycles, minimum, warmup_lr_rate } => {
                if t >= warmup {
                    return lifted(cosine(cycles, progress(t + 1.0, warmup, total)), minimum);
                }
                match warmup_lr_rate {
                    None => (t + 1.0) / warmup.max(1.0),
                    Some(rate) => rate + (1.0 - rate) * t / (warmup - 1.0).max(1.0),
                }
            }
            Self::WarmupStableDecay(ref phases) => phases.at(t),
        }
    }
}

impl WarmupStableDecay {
    fn at(&self, t: f64) -> f64 {
        if t < self.warmup {
            let x = t / self.warmup.max(1.0);
            let factor = match self.warmup_shape {
                Shape::Linear => x,
                Shape::Cosine => 0.5 * (1.0 - (PI * x).cos()),
                Shape::OneMinusSqrt => 1.0 - (1.0 - x).sqrt(),
            };
            return lifted(factor, self.minimum);
        }
        if t < self.warmup + self.stable {
            return 1.0;
        }
        if t < self.warmup + self.stable + self.decay {
            let x = (t - self.warmup - self.stable) / self.decay.max(1.0);
            let factor = match self.decay_shape {
                Shape::Linear => 1.0 - x,
                Shape::Cosine => cosine(self.cycles, x),
                Shape::OneMinusSqrt => 1.0 - x.sqrt(),
            };
            return lifted(factor, self.minimum);
        }
        self.minimum
    }
}

/// The linear warm-up `t / max(1, W)`, or `None` once it is over.
fn rising(t: f64, warmup: f64) -> Option<f64> {
    (t < warmup).then(|| t / warmup.max(1.0))
}

/// `(t - W) / max(1, T - W)`
fn progress(t: f64, warmup: f64, total: f64) -> f64 {
    (t - warmup) / (total - warmup).max(1.0)
}

/// `(1 + cos(2π·cycles·p)) / 2`
fn cosine(cycles: f64, p: f64) -> f64 {
    0.5 * (1.0 + (PI * cycles * 2.0 * p).cos())
}

fn restarts(cycles: f64, p: f64) -> f64 {
    if p >= 1.0 { 0.0 } else { (0.5 * (1.0 + (PI * (cycles * p).rem_euclid(1.0)).cos())).max(0.0) }
}

/// Squeezes 0..1 into minimum..1.
fn lifted(factor: f64, minimum: f64) -> f64 {
    (factor * (1.0 - minimum) + minimum).max(0.0)
}
