//! torch's AdamW with moments in full precision.

use super::state::{State, Values};
use super::{Error, Result, Settings, check_step};
use crate::kernels::{AdamWStep, Backend, StateSegment};

const NAME: &str = "adamw";

/// `p ← p·(1 - lr·wd)`, then `p ← p - lr/(1-β1ᵗ) · m / (√v/√(1-β2ᵗ) + eps)`.
///
/// Source: Loshchilov & Hutter 2019, arXiv:1711.05101, in the order of `torch.optim.AdamW`.
#[derive(Debug)]
pub struct AdamW<B: Backend> {
    settings: Settings,
    segments: Vec<StateSegment>,
    len: usize,
    steps: u64,
    m: B::Full,
    v: B::Full,
}

impl<B: Backend> AdamW<B> {
    /// State for a flat buffer of `len` parameters, zeroed; only `segments` of it are trained.
    pub fn new(backend: &B, settings: Settings, segments: &[StateSegment], len: usize) -> Result<Self> {
        settings.check()?;
        check_segments(segments, len)?;
        let segments = segments.iter().map(|segment| StateSegment { eight_bit: false, ..*segment }).collect();
        Ok(Self { settings, segments, len, steps: 0, m: backend.full(len)?, v: backend.full(len)? })
    }

    /// One update at rate `lr`; every gradient is multiplied by `gradient_scale` (see `clip_factor`).
    pub fn step(
        &mut self,
        backend: &B,
        params: &mut B::Full,
        gradients: &B::Full,
        lr: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        check_step(lr, gradient_scale)?;
        check_len(backend.full_len(params), self.len)?;
        check_len(backend.full_len(gradients), self.len)?;
        let step = update(&self.settings, self.steps + 1, lr, gradient_scale);
        backend.adamw(params, gradients, &mut self.m, &mut self.v, &self.segments, &step)?;
        self.steps += 1;
        Ok(())
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn state(&self, backend: &B) -> Result<State> {
        let vectors = vec![("m".to_owned(), floats(backend, &self.m)?), ("v".to_owned(), floats(backend, &self.v)?)];
        Ok(State { optimizer: NAME.to_owned(), steps: self.steps, vectors })
    }

    /// Continues from a saved state; nothing is changed if it does not fit.
    pub fn restore(&mut self, backend: &B, state: &State) -> Result<()> {
        state.check_optimizer(NAME)?;
        let (m, v) = (state.floats("m", self.len)?, state.floats("v", self.len)?);
        backend.write_full(&mut self.m, 0, m)?;
        backend.write_full(&mut self.v, 0, v)?;
        self.steps = state.steps;
        Ok(())
    }
}

pub(super) fn update(settings: &Settings, step: u64, lr: f64, gradient_scale: f64) -> AdamWStep {
    AdamWStep {
        lr,
        beta1: settings.betas.0,
        beta2: settings.betas.1,
        eps: settings.eps,
        weight_decay: settings.weight_decay,
        step,
        gradient_scale,
    }
}

pub(super) fn floats<B: Backend>(backend: &B, full: &B::Full) -> Result<Values> {
    let mut values = vec![0.0; backend.full_len(full)];
    backend.read_full(full, 0, &mut values)?;
    Ok(Values::Floats(values))
}

pub(super) fn check_len(got: usize, wanted: usize) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(Error::Size { got, wanted }) }
}

/// Segments must be in order, apart and inside the buffer.
pub(super) fn check_segments(segments: &[StateSegment], len: usize) -> Result<()> {
    if segments.iter().all(|segment| segment.len == 0) {
        return Err(Error::Nothing);
    }
    let mut free = 0;
    for segment in segments {
        let (offset, end) = (segment.offset, segment.offset.saturating_add(segment.len));
        if offset < free {
            return Err(Error::Segment { offset, end, why: "overlap the ones before" });
        }
        if end > len {
            return Err(Error::Segment { offset, end, why: "reach over the end of the buffer" });
        }
        free = end;
    }
    Ok(())
}
