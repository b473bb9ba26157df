//! `lr_scheduler`: learning rates as functions of the optimizer step.

use rhai::plugin::*;
use rhai::{Engine, FnPtr, FuncRegistration, Map, Module, NativeCallContext};

use crate::options;
use crate::schedule::{self, Schedule, ScheduleOptions};
use crate::script::Failure;
use crate::script::options::{Callback, OptionValue};

use super::{Answer, count, failure, host, number};

options! {
    /// What every schedule takes; which of them a schedule accepts it says itself.
    pub SchedulerOptions for "lr_scheduler::get" {
        lr: f64, 0.0..=1e3, "peak learning rate";
        num_warmup_steps: Option<f64> = None, 0.0.., "optimizer steps to the peak; below 1 a share of all steps";
        num_training_steps: Option<f64> = None, 0.0.., "optimizer steps in all";
        num_cycles: Option<f64> = None, 0.0.., "waves of a cosine, restarts";
        power: Option<f64> = None, "of a polynomial";
        lr_end: Option<f64> = None, 0.0.., "last rate of a polynomial";
        min_lr: Option<f64> = None, 0.0.., "lowest rate";
        min_lr_rate: Option<f64> = None, 0.0..=1.0, "lowest rate as a share of `lr`";
        num_decay_steps: Option<f64> = None, 0.0.., "last part of warmup_stable_decay";
        num_stable_steps: Option<f64> = None, 0.0.., "middle part of warmup_stable_decay";
        warmup_type: Option<String> = None, ["linear", "cosine", "1-sqrt"], "shape of the rise";
        decay_type: Option<String> = None, ["linear", "cosine", "1-sqrt"], "shape of the fall";
        min_lr_ratio: Option<f64> = None, 0.0..=1.0, "lowest rate of warmup_stable_decay as a share of `lr`";
        timescale: Option<f64> = None, 0.0.., "of inverse_sqrt, in steps";
        warmup_lr_rate: Option<f64> = None, 0.0..=1.0, "first rate of the warm-up as a share of `lr`";
    }
}

impl From<SchedulerOptions> for ScheduleOptions {
    fn from(o: SchedulerOptions) -> Self {
        Self {
            lr: o.lr,
            num_warmup_steps: o.num_warmup_steps,
            num_training_steps: o.num_training_steps,
            num_cycles: o.num_cycles,
            power: o.power,
            lr_end: o.lr_end,
            min_lr: o.min_lr,
            min_lr_rate: o.min_lr_rate,
            num_decay_steps: o.num_decay_steps,
            num_stable_steps: o.num_stable_steps,
            warmup_type: o.warmup_type,
            decay_type: o.decay_type,
            min_lr_ratio: o.min_lr_ratio,
            timescale: o.timescale,
            warmup_lr_rate: o.warmup_lr_rate,
        }
    }
}

/// A schedule by formula, or a script's own.
#[derive(Clone, Debug)]
pub enum Scheduler {
    Formula(Schedule),
    Closure(FnPtr),
}

fn make(context: &NativeCallContext<'_>, name: &str, options: &Map) -> Answer<Scheduler> {
    let options = SchedulerOptions::parse(options, context)?;
    let made = Schedule::get(name, &options.into()).map_err(|error| failure(context, &error))?;
    if let Some(remark) = made.remark() {
        host(context)?.note(&format!("warning: {remark}"));
    }
    Ok(Scheduler::Formula(made))
}

#[export_module]
mod constructors {
    use super::*;

    /// Returns the schedule called `name`, by transformers' names and formulas.
    ///
    /// ```rhai
    /// let lr = lr_scheduler::get("cosine", #{ lr: 2e-4, num_warmup_steps: 10, num_training_steps: 60 });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn get(context: NativeCallContext<'_>, name: &str, options: Map) -> Answer<Scheduler> {
        make(&context, name, &options)
    }

    /// Returns a schedule whose rate at a step (0-based) is what the closure returns.
    ///
    /// ```rhai
    /// let lr = lr_scheduler::from(|step| if step < 10 { 1e-4 } else { 1e-5 });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn from(context: NativeCallContext<'_>, rate: FnPtr) -> Answer<Scheduler> {
        let wrong = |what| Failure::at(&context, format!("the closure of `lr_scheduler::from` {what}"));
        let callback = Callback::<1>::read(&Dynamic::from(rate), &context).map_err(wrong)?;
        Ok(Scheduler::Closure(callback.0))
    }
}

#[export_module]
mod methods {
    use super::*;

    /// Returns the learning rate of the optimizer step with this 0-based index.
    ///
    /// ```rhai
    /// opt.step(lr.at(step.index));
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn at(context: NativeCallContext<'_>, scheduler: &mut Scheduler, step: i64) -> Answer<f64> {
        let step = count(&context, "a step", step)?;
        match scheduler {
            Scheduler::Formula(schedule) => Ok(schedule.at(step as u64)),
            Scheduler::Closure(rate) => {
                let rate: Dynamic = rate.call_within_context(&context, (step as i64,))?;
                number(&context, "the rate that the closure returns", &rate)
            }
        }
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(scheduler: &mut Scheduler) -> String {
        match scheduler {
            Scheduler::Formula(schedule) => format!("Scheduler({})", schedule.name()),
            Scheduler::Closure(_) => "Scheduler(a closure)".to_owned(),
        }
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Scheduler>("Scheduler");
    let mut module: Module = exported_module!(constructors);
    for name in schedule::NAMES {
        let summary = format!("/// Returns the schedule `{name}`; see `lr_scheduler::get` for its options.");
        FuncRegistration::new(name)
            .with_comments([summary])
            .set_into_module(&mut module, move |context: NativeCallContext<'_>, options: Map| {
                make(&context, name, &options)
            });
    }
    engine.register_static_module("lr_scheduler", module.into());
    engine.register_global_module(exported_module!(methods).into());
}
