//! Dynamic loss scaling: gradients in f16 are kept above its smallest number, and below its greatest.

use super::{Error, Result};

/// The scale to begin with.
const START: f64 = 65_536.0;
/// Updates in a row after which a larger scale is tried.
const PATIENCE: u64 = 2000;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
/// A gradient that is not finite at this scale does not come from the scaling.
const LEAST: f64 = 1.0;

/// The factor that a loss is multiplied by before its backward, and how it follows the gradients.
///
/// Halved where the gradients overflow, and that step is left out; doubled after 2000 updates in a row. Every scale is a
/// power of two times the first, so scaling rounds nothing. Source: Micikevicius et al. 2018, arXiv:1710.03740, with the
/// constants of `torch.amp.GradScaler`, which goes on halving below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    scale: f64,
    /// Updates since the scale has changed.
    updates: u64,
    skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: START, updates: 0, skipped: 0 }
    }
}

impl LossScale {
    /// Starts at `scale` instead of 65536.
    pub fn new(scale: f64) -> Result<Self> {
        if scale.is_finite() && scale >= LEAST {
            return Ok(Self { scale, ..Self::default() });
        }
        Err(Error::Option { option: "loss_scale", got: scale, wanted: "a finite number of at least 1" })
    }

    /// What the loss is multiplied by now.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Steps left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Whether gradients that are not finite may be so because of the scale.
    pub fn may_overflow(&self) -> bool {
        self.scale * BACKOFF >= LEAST
    }

    /// The parameters were updated.
    pub fn updated(&mut self) {
        self.updates += 1;
        if self.updates == PATIENCE {
            self.updates = 0;
            let larger = self.scale * GROWTH;
            // f32 gradients and their update must be able to hold it
            if larger <= f64::from(f32::MAX) {
                self.scale = larger;
            }
        }
    }

    /// The gradients were not finite, and the step was left out.
    pub fn overflowed(&mut self) {
        self.updates = 0;
        self.skipped += 1;
        self.scale *= BACKOFF;
    }
}
