//! `optim`: what changes the trained parameters.

use rhai::plugin::*;
use rhai::{Engine, Map, NativeCallContext};

use crate::optim::Settings;
use crate::options;
use crate::train::{Algorithm, Optimizer, Parameters, Skipped, Step};

use super::{Answer, host, number, train_failure};

options! {
    /// What every AdamW takes.
    pub AdamWOptions for "optim::adamw" {
        betas: Vec<f64> = vec![0.9, 0.999], 0.0..=1.0, "decay of the two running means, [beta1, beta2]";
        eps: f64 = 1e-8, 0.0..=1.0, "keeps the division finite";
        weight_decay: f64 = 0.0, 0.0..=1e3, "share of a weight taken away per step, times the rate";
    }
}

impl AdamWOptions {
    fn settings(&self, context: &NativeCallContext<'_>) -> Answer<Settings> {
        match self.betas.as_slice() {
            [beta1, beta2] if *beta1 < 1.0 && *beta2 < 1.0 => {
                Ok(Settings { betas: (*beta1, *beta2), eps: self.eps, weight_decay: self.weight_decay })
            }
            _ => Err(Self::SCHEMA.wrong("betas", "must be two numbers, each at least 0 and below 1", context)),
        }
    }
}

#[export_module]
mod constructors {
    use super::*;

    /// Returns AdamW as torch computes it: decay first, then the update; moments in full precision.
    ///
    /// ```rhai
    /// let opt = optim::adamw(model.parameters(), #{ weight_decay: 0.1 });
    /// ```
    #[rhai_fn(name = "adamw", return_raw)]
    pub fn adamw(context: NativeCallContext<'_>, parameters: Parameters, options: Map) -> Answer<Optimizer> {
        let settings = AdamWOptions::parse(&options, &context)?.settings(&context)?;
        Optimizer::new(&parameters, Algorithm::AdamW(settings)).map_err(|error| train_failure(&context, &error))
    }

    /// Returns AdamW with every option at its default.
    ///
    /// ```rhai
    /// let opt = optim::adamw(model.parameters());
    /// ```
    #[rhai_fn(name = "adamw", return_raw)]
    pub fn adamw_by_default(context: NativeCallContext<'_>, parameters: Parameters) -> Answer<Optimizer> {
        adamw(context, parameters, Map::new())
    }

    /// Returns AdamW as bitsandbytes computes it: 8-bit moments in blocks of 256, the update first, then decay.
    ///
    /// ```rhai
    /// let opt = optim::adamw_8bit(model.parameters(), #{ weight_decay: 0.1 });
    /// ```
    #[rhai_fn(name = "adamw_8bit", return_raw)]
    pub fn adamw_8bit(context: NativeCallContext<'_>, parameters: Parameters, options: Map) -> Answer<Optimizer> {
        let settings = AdamWOptions::parse(&options, &context)?.settings(&context)?;
        Optimizer::new(&parameters, Algorithm::AdamW8bit(settings)).map_err(|error| train_failure(&context, &error))
    }

    /// Returns 8-bit AdamW with every option at its default.
    ///
    /// ```rhai
    /// let opt = optim::adamw_8bit(model.parameters());
    /// ```
    #[rhai_fn(name = "adamw_8bit", return_raw)]
    pub fn adamw_8bit_by_default(context: NativeCallContext<'_>, parameters: Parameters) -> Answer<Optimizer> {
        adamw_8bit(context, parameters, Map::new())
    }
}

#[export_module]
mod methods {
    use super::*;

    /// Updates the parameters once, at learning rate `lr`. In f16 a step whose gradients overflowed is left out, and said.
    ///
    /// ```rhai
    /// opt.step(lr.at(step.index));
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn step(context: NativeCallContext<'_>, optimizer: &mut Optimizer, lr: Dynamic) -> Answer<()> {
        let lr = number(&context, "the learning rate", &lr)?;
        let step = optimizer.step(lr).map_err(|error| train_failure(&context, &error))?;
        if let Step::Skipped(skipped) = step {
            host(&context)?.note(&left_out(&skipped));
        }
        Ok(())
    }

    /// Sets every gradient to zero.
    ///
    /// ```rhai
    /// opt.zero_grad();
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn zero_grad(context: NativeCallContext<'_>, optimizer: &mut Optimizer) -> Answer<()> {
        optimizer.zero_grad().map_err(|error| train_failure(&context, &error))
    }

    /// Shortens the gradient to `max_norm` where it is longer, and returns the norm it had; infinite where f16 overflowed.
    ///
    /// ```rhai
    /// let norm = opt.clip_grad_norm(1.0);
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn clip_grad_norm(context: NativeCallContext<'_>, optimizer: &mut Optimizer, max_norm: Dynamic) -> Answer<f64> {
        let max_norm = number(&context, "`max_norm`", &max_norm)?;
        optimizer.clip_grad_norm(max_norm).map_err(|error| train_failure(&context, &error))
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(optimizer: &mut Optimizer) -> String {
        let (name, settings) = match optimizer.algorithm() {
            Algorithm::AdamW(settings) => ("adamw", settings),
            Algorithm::AdamW8bit(settings) => ("adamw_8bit", settings),
        };
        let Settings { betas: (beta1, beta2), eps, weight_decay } = settings;
        format!("Optimizer({name}, betas [{beta1}, {beta2}], eps {eps:e}, weight_decay {weight_decay})")
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_parameters(parameters: &mut Parameters) -> String {
        format!("Parameters({} values)", parameters.model().trainable_parameters())
    }
}

/// Why a step changed nothing.
fn left_out(step: &Skipped) -> String {
    let Skipped { scale, next_scale, skipped } = step;
    format!(
        "a step was left out: its gradients overflowed in f16 with the loss scaled by {scale}, from now on by \
         {next_scale}; left out so far: {skipped}"
    )
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Optimizer>("Optimizer").register_type_with_name::<Parameters>("Parameters");
    let mut module = exported_module!(constructors);
    super::later::extend(&mut module, "optim");
    engine.register_static_module("optim", module.into());
    engine.register_global_module(exported_module!(methods).into());
}
