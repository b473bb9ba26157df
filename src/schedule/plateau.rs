//! `reduce_lr_on_plateau`: lowers the rate when an evaluated metric stops improving (torch's ReduceLROnPlateau).

use super::{Error, Result};

const NAME: &str = "reduce_lr_on_plateau";

/// Whether the metric should fall (a loss) or rise (an accuracy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlateauMode {
    #[default]
    Min,
    Max,
}

/// Whether `threshold` is a share of the best metric or a difference from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThresholdMode {
    #[default]
    Relative,
    Absolute,
}

/// torch's options under torch's names and with its defaults, except `lr`.
#[derive(Clone, Debug, PartialEq)]
pub struct PlateauOptions {
    pub lr: f64,
    pub mode: PlateauMode,
    /// The rate is multiplied by this.
    pub factor: f64,
    /// Evaluations without improvement that are let pass.
    pub patience: u64,
    pub threshold: f64,
    pub threshold_mode: ThresholdMode,
    /// Evaluations after a reduction that do not count as bad.
    pub cooldown: u64,
    pub min_lr: f64,
    /// A reduction smaller than this is not made.
    pub eps: f64,
}

impl Default for PlateauOptions {
    fn default() -> Self {
        Self {
            lr: 5e-5,
            mode: PlateauMode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Relative,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

/// What changes while a `Plateau` is used; saved and restored to resume a run.
#[derive(Clone, Debug, PartialEq)]
pub struct PlateauState {
    pub lr: f64,
    /// `None` before the first evaluation.
    pub best: Option<f64>,
    pub bad_evaluations: u64,
    pub cooldown_left: u64,
}

/// A learning rate that falls by `factor` after `patience` evaluations without improvement.
#[derive(Clone, Debug, PartialEq)]
pub struct Plateau {
    options: PlateauOptions,
    state: PlateauState,
}

impl Plateau {
    pub fn new(options: PlateauOptions) -> Result<Self> {
        let checks = [
            ("lr", options.lr, options.lr >= 0.0, "a finite number of at least 0"),
            ("factor", options.factor, (0.0..1.0).contains(&options.factor), "a number from 0 to below 1"),
            ("threshold", options.threshold, options.threshold >= 0.0, "a finite number of at least 0"),
            ("min_lr", options.min_lr, options.min_lr >= 0.0, "a finite number of at least 0"),
            ("eps", options.eps, options.eps >= 0.0, "a finite number of at least 0"),
        ];
        for (option, got, is_good, wanted) in checks {
            if !got.is_finite() || !is_good {
                return Err(Error::Value { schedule: NAME, option, got, wanted });
            }
        }
        let state = PlateauState { lr: options.lr, best: None, bad_evaluations: 0, cooldown_left: 0 };
        Ok(Self { options, state })
    }

    /// The rate to use now.
    pub fn lr(&self) -> f64 {
        self.state.lr
    }

    /// Takes the metric of one evaluation and returns the rate to use from now on; NaN is no improvement.
    pub fn step(&mut self, metric: f64) -> f64 {
        let state = &mut self.state;
        if is_better(&self.options, metric, state.best) {
            state.best = Some(metric);
            state.bad_evaluations = 0;
        } else {
            state.bad_evaluations += 1;
        }
        if state.cooldown_left > 0 {
            state.cooldown_left -= 1;
            state.bad_evaluations = 0;
        }
        if state.bad_evaluations > self.options.patience {
            let lower = (state.lr * self.options.factor).max(self.options.min_lr);
            if state.lr - lower > self.options.eps {
                state.lr = lower;
            }
            state.cooldown_left = self.options.cooldown;
            state.bad_evaluations = 0;
        }
        state.lr
    }

    pub fn state(&self) -> &PlateauState {
        &self.state
    }

    pub fn restore(&mut self, state: PlateauState) {
        self.state = state;
    }
}

fn is_better(options: &PlateauOptions, metric: f64, best: Option<f64>) -> bool {
    let threshold = options.threshold;
    match (options.mode, options.threshold_mode) {
        (PlateauMode::Min, mode) => {
            let best = best.unwrap_or(f64::INFINITY);
            let bound = if mode == ThresholdMode::Relative { best * (1.0 - threshold) } else { best - threshold };
            metric < bound
        }
        (PlateauMode::Max, mode) => {
            let best = best.unwrap_or(f64::NEG_INFINITY);
            let bound = if mode == ThresholdMode::Relative { best * (1.0 + threshold) } else { best + threshold };
            metric > bound
        }
    }
}
