//! Optimizer steps over a model's adapter, whatever device it is on.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::FlatMut;
use crate::kernels::Backend;
use crate::optim::{AdamW, AdamW8bit, Settings, clip_factor};

use super::{Error, Parameters, Result};

/// Which update, with its constants.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// torch's AdamW: decay, then the update; full-precision moments.
    AdamW(Settings),
    /// bitsandbytes' blockwise AdamW: the update, then decay; 8-bit moments.
    AdamW8bit(Settings),
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Updated,
    /// The gradients had overflowed under the scaled loss: nothing was updated.
    Skipped(Skipped),
}

/// A step that was left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Skipped {
    /// What the loss was multiplied by, and will be from now on.
    pub scale: f64,
    pub next_scale: f64,
    /// Steps left out on this model, this one included.
    pub skipped: u64,
}

/// An optimizer of one model's adapter. Copies are the same optimizer.
#[derive(Clone)]
pub struct Optimizer(Arc<Inner>);

struct Inner {
    parameters: Parameters,
    algorithm: Algorithm,
    moments: Mutex<Box<dyn Any + Send>>,
}

impl Optimizer {
    pub fn new(parameters: &Parameters, algorithm: Algorithm) -> Result<Self> {
        parameters.check()?;
        let moments = Mutex::new(parameters.model.runner().moments(&algorithm)?);
        Ok(Self(Arc::new(Inner { parameters: parameters.clone(), algorithm, moments })))
    }

    pub fn algorithm(&self) -> &Algorithm {
        &self.0.algorithm
    }

    /// One update at rate `lr`. Gradients stay as they are: `zero_grad` clears them.
    ///
    /// Where the loss is scaled (f16) and the gradients have overflowed, nothing is updated and the scale is halved.
    pub fn step(&self, lr: f64) -> Result<Step> {
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(Error::LearningRate { value: lr });
        }
        let model = self.model()?;
        if model.runner().is_pending() {
            return Err(crate::engine::Error::PassPending.into());
        }
        // A broken gradient must not reach the parameters, whether or not the script clips.
        if !model.gradient_norm()?.is_finite() {
            return Ok(Step::Skipped(model.skip_step()?));
        }
        let mut moments = self.0.moments.lock().unwrap_or_else(PoisonError::into_inner);
        model.runner().update(moments.as_mut(), lr)?;
        model.count_step()?;
        Ok(Step::Updated)
    }

    pub fn zero_grad(&self) -> Result<()> {
        self.model()?.zero_grad()
    }

    /// Scales all gradients by `min(1, max_norm / (norm + 1e-6))` and returns the norm they had; 0 scales nothing.
    ///
    /// Gradients that have overflowed under a scaled loss stay as they are, for `step` to leave out; their norm is
    /// infinite.
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<f64> {
        let model = self.model()?;
        let norm = model.gradient_norm()?;
        if !norm.is_finite() {
            return Ok(f64::INFINITY);
        }
        let factor = clip_factor(norm, max_norm)?;
        if factor < 1.0 {
            model.runner().scale_gradients(factor)?;
        }
        Ok(norm)
    }

    fn model(&self) -> Result<&super::Model> {
        self.0.parameters.check()?;
        Ok(&self.0.parameters.model)
    }
}

impl std::fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimizer").field("algorithm", &self.0.algorithm).finish_non_exhaustive()
    }
}

impl Parameters {
    /// Fails when the adapter they belong to is gone.
    fn check(&self) -> Result<()> {
        if self.model.adapter() == self.adapter { Ok(()) } else { Err(Error::OtherAdapter) }
    }

    pub fn model(&self) -> &super::Model {
        &self.model
    }
}

/// An optimizer's state on the device.
pub(super) enum Moments<B: Backend> {
    Full(AdamW<B>),
    EightBit(AdamW8bit<B>),
}

impl<B: Backend> Moments<B> {
    pub fn new(backend: &B, flat: crate::engine::Flat<'_, B>, algorithm: &Algorithm) -> Result<Self> {
        let len = backend.full_len(flat.params);
        Ok(match algorithm {
            Algorithm::AdamW(settings) => Self::Full(AdamW::new(backend, *settings, flat.segments, len)?),
            Algorithm::AdamW8bit(settings) => Self::EightBit(AdamW8bit::new(backend, *settings, flat.segments, len)?),
        })
    }

    /// One update; every gradient is multiplied by `gradient_scale`.
    pub fn step(&mut self, flat: FlatMut<'_, B>, lr: f64, gradient_scale: f64) -> Result<()> {
        let FlatMut { backend, params, gradients, .. } = flat;
        match self {
            Self::Full(adamw) => adamw.step(backend, params, gradients, lr, gradient_scale)?,
            Self::EightBit(adamw) => adamw.step(backend, params, gradients, lr, gradient_scale)?,
        }
        Ok(())
    }
}
