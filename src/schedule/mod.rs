//! Learning-rate schedules: pure functions of the optimizer step, named and parametrised as in transformers.
//!
//! Source: `transformers/optimization.py` (4.57 and 5.x have the same formulas).

mod factor;
mod options;
mod plateau;
#[cfg(test)]
mod tests;

pub use options::ScheduleOptions;
pub use plateau::{Plateau, PlateauMode, PlateauOptions, PlateauState, ThresholdMode};

use factor::Factor;

/// The schedules `Schedule::get` knows.
pub const NAMES: [&str; 10] = [
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
];

/// Why a schedule could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("unknown schedule `{name}`{}; schedules: {}", did_you_mean(.nearest), NAMES.join(", "))]
    UnknownName { name: String, nearest: Option<&'static str> },
    #[error(
        "`reduce_lr_on_plateau` follows the evaluation loss, so it is no function of the step: make a `Plateau` and \
         step it after each evaluation"
    )]
    Plateau,
    #[error("schedule `{schedule}` does not take `{option}`; {}", takes(.accepted))]
    UnknownOption { schedule: &'static str, option: &'static str, accepted: &'static [&'static str] },
    #[error("schedule `{schedule}` needs `{option}`")]
    Missing { schedule: &'static str, option: &'static str },
    #[error("`{option}` is {got} for schedule `{schedule}`, wanted {wanted}")]
    Value { schedule: &'static str, option: &'static str, got: f64, wanted: &'static str },
    #[error("`{option}` is `{got}` for schedule `{schedule}`, wanted one of linear, cosine, 1-sqrt")]
    Shape { schedule: &'static str, option: &'static str, got: String },
    #[error("schedule `{schedule}` takes `min_lr` or `min_lr_rate`, not both")]
    TwoMinima { schedule: &'static str },
    #[error("schedule `{schedule}` needs `min_lr` (a rate) or `min_lr_rate` (a share of `lr`)")]
    NoMinimum { schedule: &'static str },
    #[error("`lr_end` ({lr_end}) must be smaller than the initial `lr` ({lr}) for schedule `polynomial`")]
    EndNotSmaller { lr_end: f64, lr: f64 },
    #[error(
        "`num_training_steps` and `num_warmup_steps` are both {steps} for schedule `polynomial`, which leaves no step \
         to decay in: lower `num_warmup_steps`"
    )]
    NoDecay { steps: f64 },
    #[error(
        "`num_warmup_steps` + `num_decay_steps` is {sum}, more than `num_training_steps` ({total}) for schedule \
         `warmup_stable_decay`: lower one of them"
    )]
    TooLong { sum: f64, total: f64 },
}

pub type Result<T> = std::result::Result<T, Error>;

/// The learning rate of every optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    name: &'static str,
    lr: f64,
    factor: Factor,
    remark: Option<Remark>,
}

/// What is allowed and hardly meant.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Remark {
    #[error(
        "the warm-up takes {warmup} steps and there are {total}: the rate never reaches its peak; fewer warm-up steps \
         (say {}) or more steps in all mend that", (.total / 10.0).floor()
    )]
    NeverAtPeak { warmup: f64, total: f64 },
    #[error("schedule `constant` has no warm-up, {warmup} is not used; `constant_with_warmup` has one")]
    NoWarmup { warmup: f64 },
}

impl Schedule {
    /// The schedule called `name`, or an error that says which option is missing, unknown or out of range.
    pub fn get(name: &str, options: &ScheduleOptions) -> Result<Self> {
        if name == "reduce_lr_on_plateau" {
            return Err(Error::Plateau);
        }
        let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
            return Err(Error::UnknownName { name: name.to_owned(), nearest: nearest(name) });
        };
        let factor = options::factor(name, options)?;
        let remark = match (name, options.num_warmup_steps, options.num_training_steps) {
            ("constant", Some(warmup), _) if warmup > 0.0 => Some(Remark::NoWarmup { warmup }),
            ("constant", ..) => None,
            (_, Some(warmup), Some(total)) if warmup >= 1.0 && warmup >= total => {
                Some(Remark::NeverAtPeak { warmup, total })
            }
            _ => None,
        };
        Ok(Self { name, lr: options.lr, factor, remark })
    }

    /// What whoever chose these options should be told.
    pub fn remark(&self) -> Option<Remark> {
        self.remark
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The learning rate used in the optimizer step with this 0-based index.
    pub fn at(&self, step: u64) -> f64 {
        self.lr * self.factor(step)
    }

    /// `at` divided by the peak rate.
    pub fn factor(&self, step: u64) -> f64 {
        self.factor.at(step as f64)
    }
}

/// Warm-up in optimizer steps: a number below 1 is a share of all steps, rounded up; 1 or more is the number itself.
pub fn warmup_steps(value: f64, num_training_steps: f64) -> f64 {
    if value < 1.0 { (num_training_steps * value).ceil() } else { value.trunc() }
}

fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    let (score, best) = NAMES.into_iter().fold((0.0, None), |(score, best), known| {
        let new = strsim::jaro_winkler(&name, known);
        if new > score { (new, Some(known)) } else { (score, best) }
    });
    if score > 0.75 { best } else { None }
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

fn takes(accepted: &[&str]) -> String {
    if accepted.is_empty() {
        "it takes only lr, num_warmup_steps, num_training_steps".to_owned()
    } else {
        format!("it takes lr, num_warmup_steps, num_training_steps, {}", accepted.join(", "))
    }
}
