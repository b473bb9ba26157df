//! What a schedule accepts, and the checks that turn it into a formula.

use super::factor::{Factor, Shape, WarmupStableDecay};
use super::{Error, Result, warmup_steps};

/// Options of every schedule under transformers' names; `None` is "not given".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduleOptions {
    /// The peak learning rate.
    pub lr: f64,
    /// Optimizer steps; below 1 it is a share of `num_training_steps`. Default 0.
    pub num_warmup_steps: Option<f64>,
    pub num_training_steps: Option<f64>,
    pub num_cycles: Option<f64>,
    pub power: Option<f64>,
    pub lr_end: Option<f64>,
    pub min_lr: Option<f64>,
    pub min_lr_rate: Option<f64>,
    pub num_decay_steps: Option<f64>,
    pub num_stable_steps: Option<f64>,
    /// `linear`, `cosine` or `1-sqrt`.
    pub warmup_type: Option<String>,
    /// `linear`, `cosine` or `1-sqrt`.
    pub decay_type: Option<String>,
    pub min_lr_ratio: Option<f64>,
    pub timescale: Option<f64>,
    pub warmup_lr_rate: Option<f64>,
}

/// Counts above this lose whole steps in f64.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;

/// The formula of the known schedule `name`.
pub(super) fn factor(name: &'static str, options: &ScheduleOptions) -> Result<Factor> {
    let reader = Reader { schedule: name, options };
    reader.only(accepted(name))?;
    reader.number("lr", Some(options.lr), |v| v >= 0.0, "a finite number of at least 0")?;
    let warmup = reader.warmup()?;
    Ok(match name {
        "constant" => Factor::Constant,
        "constant_with_warmup" => Factor::ConstantWithWarmup { warmup },
        "linear" => Factor::Linear { warmup, total: reader.total()? },
        "cosine" => Factor::Cosine { warmup, total: reader.total()?, cycles: reader.cycles(0.5)?, minimum: 0.0 },
        "cosine_with_restarts" => {
            Factor::CosineWithRestarts { warmup, total: reader.total()?, cycles: reader.cycles(1.0)? }
        }
        "polynomial" => reader.polynomial(warmup)?,
        "inverse_sqrt" => {
            let default = if warmup == 0.0 { 10_000.0 } else { warmup };
            let timescale = reader
                .number("timescale", options.timescale, |v| v > 0.0, "a finite number above 0")?
                .unwrap_or(default);
            Factor::InverseSqrt { warmup, timescale }
        }
        "cosine_with_min_lr" => {
            Factor::Cosine { warmup, total: reader.total()?, cycles: reader.cycles(0.5)?, minimum: reader.minimum()? }
        }
        "cosine_warmup_with_min_lr" => Factor::CosineWarmup {
            warmup,
            total: reader.total()?,
            cycles: reader.cycles(0.5)?,
            minimum: reader.minimum()?,
            warmup_lr_rate: reader.share("warmup_lr_rate", options.warmup_lr_rate)?,
        },
        "warmup_stable_decay" => Factor::WarmupStableDecay(reader.warmup_stable_decay(warmup)?),
        _ => unreachable!("the name comes from NAMES"),
    })
}

/// What a schedule takes beside `lr`, `num_warmup_steps` and `num_training_steps`.
fn accepted(name: &str) -> &'static [&'static str] {
    match name {
        "cosine" | "cosine_with_restarts" => &["num_cycles"],
        "polynomial" => &["lr_end", "power"],
        "inverse_sqrt" => &["timescale"],
        "cosine_with_min_lr" => &["num_cycles", "min_lr", "min_lr_rate"],
        "cosine_warmup_with_min_lr" => &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
        "warmup_stable_decay" => {
            &["num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"]
        }
        _ => &[],
    }
}

struct Reader<'a> {
    schedule: &'static str,
    options: &'a ScheduleOptions,
}

impl Reader<'_> {
    /// Fails on the first option that is given but not taken: an ignored option is a mistake nobody sees.
    fn only(&self, accepted: &'static [&'static str]) -> Result<()> {
        let o = self.options;
        let given = [
            ("num_cycles", o.num_cycles.is_some()),
            ("power", o.power.is_some()),
            ("lr_end", o.lr_end.is_some()),
            ("min_lr", o.min_lr.is_some()),
            ("min_lr_rate", o.min_lr_rate.is_some()),
            ("num_decay_steps", o.num_decay_steps.is_some()),
            ("num_stable_steps", o.num_stable_steps.is_some()),
            ("warmup_type", o.warmup_type.is_some()),
            ("decay_type", o.decay_type.is_some()),
            ("min_lr_ratio", o.min_lr_ratio.is_some()),
            ("timescale", o.timescale.is_some()),
            ("warmup_lr_rate", o.warmup_lr_rate.is_some()),
        ];
        match given.into_iter().find(|(option, is_given)| *is_given && !accepted.contains(option)) {
            Some((option, _)) => Err(Error::UnknownOption { schedule: self.schedule, option, accepted }),
            None => Ok(()),
        }
    }

    fn number(
        &self,
        option: &'static str,
        value: Option<f64>,
        is_good: impl Fn(f64) -> bool,
        wanted: &'static str,
    ) -> Result<Option<f64>> {
        match value {
            Some(got) if !got.is_finite() || !is_good(got) => {
                Err(Error::Value { schedule: self.schedule, option, got, wanted })
            }
            value => Ok(value),
        }
    }

    fn count(&self, option: &'static str, value: Option<f64>) -> Result<Option<f64>> {
        let is_count = |v: f64| (0.0..=MAX_COUNT).contains(&v) && v.fract() == 0.0;
        self.number(option, value, is_count, "a whole number of at least 0")
    }

    fn share(&self, option: &'static str, value: Option<f64>) -> Result<Option<f64>> {
        self.number(option, value, |v| (0.0..=1.0).contains(&v), "a number from 0 to 1")
    }

    fn missing(&self, option: &'static str) -> Error {
        Error::Missing { schedule: self.schedule, option }
    }

    fn total(&self) -> Result<f64> {
        let total = self.count("num_training_steps", self.options.num_training_steps)?;
        total.ok_or_else(|| self.missing("num_training_steps"))
    }

    fn warmup(&self) -> Result<f64> {
        let wanted = "a whole number of steps, or a share of all steps below 1";
        let is_good = |v: f64| (0.0..=MAX_COUNT).contains(&v) && (v < 1.0 || v.fract() == 0.0);
        match self.number("num_warmup_steps", self.options.num_warmup_steps, is_good, wanted)? {
            None => Ok(0.0),
            Some(share) if share > 0.0 && share < 1.0 => Ok(warmup_steps(share, self.total()?)),
            Some(steps) => Ok(steps),
        }
    }

    fn cycles(&self, default: f64) -> Result<f64> {
        let wanted = "a finite number of at least 0";
        Ok(self.number("num_cycles", self.options.num_cycles, |v| v >= 0.0, wanted)?.unwrap_or(default))
    }

    /// The lowest factor, from `min_lr_rate` or from `min_lr` divided by `lr`.
    fn minimum(&self) -> Result<f64> {
        let schedule = self.schedule;
        match (self.options.min_lr, self.options.min_lr_rate) {
            (Some(_), Some(_)) => Err(Error::TwoMinima { schedule }),
            (None, None) => Err(Error::NoMinimum { schedule }),
            (None, rate) => Ok(self.share("min_lr_rate", rate)?.unwrap_or_default()),
            (Some(min_lr), None) => {
                let lr = self.options.lr;
                let is_good = |v: f64| v >= 0.0 && v <= lr && lr > 0.0;
                self.number("min_lr", Some(min_lr), is_good, "a number from 0 to `lr`, with `lr` above 0")?;
                Ok(min_lr / lr)
            }
        }
    }

    fn polynomial(&self, warmup: f64) -> Result<Factor> {
        let at_least_0 = "a finite number of at least 0";
        let lr_end = self.number("lr_end", self.options.lr_end, |v| v >= 0.0, at_least_0)?.unwrap_or(1e-7);
        let power = self.number("power", self.options.power, |v| v >= 0.0, at_least_0)?.unwrap_or(1.0);
        let (total, lr) = (self.total()?, self.options.lr);
        if lr <= lr_end {
            return Err(Error::EndNotSmaller { lr_end, lr });
        }
        if total == warmup {
            return Err(Error::NoDecay { steps: total });
        }
        Ok(Factor::Polynomial { warmup, total, power, lr_end, lr })
    }

    fn warmup_stable_decay(&self, warmup: f64) -> Result<WarmupStableDecay> {
        let o = self.options;
        let decay = self.count("num_decay_steps", o.num_decay_steps)?;
        let decay = decay.ok_or_else(|| self.missing("num_decay_steps"))?;
        let stable = match self.count("num_stable_steps", o.num_stable_steps)? {
            Some(stable) => stable,
            None => {
                let total = self.total()?;
                if warmup + decay > total {
                    return Err(Error::TooLong { sum: warmup + decay, total });
                }
                total - warmup - decay
            }
        };
        Ok(WarmupStableDecay {
            warmup,
            stable,
            decay,
            warmup_shape: self.shape("warmup_type", o.warmup_type.as_deref(), Shape::Linear)?,
            decay_shape: self.shape("decay_type", o.decay_type.as_deref(), Shape::Cosine)?,
            minimum: self.share("min_lr_ratio", o.min_lr_ratio)?.unwrap_or(0.0),
            cycles: self.cycles(0.5)?,
        })
    }

    fn shape(&self, option: &'static str, name: Option<&str>, default: Shape) -> Result<Shape> {
        match name {
            None => Ok(default),
            Some("linear") => Ok(Shape::Linear),
            Some("cosine") => Ok(Shape::Cosine),
            Some("1-sqrt") => Ok(Shape::OneMinusSqrt),
            Some(got) => Err(Error::Shape { schedule: self.schedule, option, got: got.to_owned() }),
        }
    }
}
