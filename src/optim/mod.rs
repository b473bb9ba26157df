//! Optimizers: settings, step count and state around the backend's update kernels.
//!
//! `AdamW` decays before the update as torch does; `AdamW8bit` after it, as bitsandbytes' CUDA kernel does.

mod adamw;
mod adamw_8bit;
mod loss_scale;
mod state;
#[cfg(test)]
mod tests;

use crate::kernels;

pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use loss_scale::LossScale;
pub use state::{State, Values};

/// Why an optimizer could not be made, stepped or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{option}` is {got}, wanted {wanted}")]
    Option { option: &'static str, got: f64, wanted: &'static str },
    #[error("there is nothing to train: no parameter is trainable")]
    Nothing,
    #[error("parameters {offset} to {end} {why}")]
    Segment { offset: usize, end: usize, why: &'static str },
    #[error("the optimizer was made for {wanted} parameters, got {got}; make it again after adding an adapter")]
    Size { got: usize, wanted: usize },
    #[error("the norm of the gradient is {norm}: the step before it went wrong, and no parameter was changed")]
    NotFinite { norm: f64 },
    #[error("the saved state is of `{got}`, this optimizer is `{wanted}`")]
    OtherOptimizer { got: String, wanted: &'static str },
    #[error("the saved state has no `{name}`")]
    NoVector { name: &'static str },
    #[error("`{name}` of the saved state holds {got} values, wanted {wanted}: it belongs to another adapter")]
    VectorSize { name: &'static str, got: usize, wanted: usize },
    #[error("`{name}` of the saved state holds {got}, wanted {wanted}")]
    VectorKind { name: &'static str, got: &'static str, wanted: &'static str },
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// AdamW's constants; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the first and of the second moment.
    pub betas: (f64, f64),
    pub eps: f64,
    pub weight_decay: f64,
}

impl Default for Settings {
    /// transformers' defaults, which are torch's but for the weight decay.
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 }
    }
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        let beta = "a number from 0 to below 1";
        range("betas[0]", self.betas.0, (0.0..1.0).contains(&self.betas.0), beta)?;
        range("betas[1]", self.betas.1, (0.0..1.0).contains(&self.betas.1), beta)?;
        range("eps", self.eps, self.eps > 0.0, "a finite number above 0")?;
        range("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "a finite number of at least 0")
    }
}

/// The factor that brings a gradient of this norm to at most `max_norm`: `min(1, max_norm / (norm + 1e-6))`.
///
/// 1 when `max_norm` is 0 or less (no clipping). A norm that is not finite is an error: torch would spread it over
/// every parameter.
pub fn clip_factor(norm: f64, max_norm: f64) -> Result<f64> {
    if !norm.is_finite() {
        return Err(Error::NotFinite { norm });
    }
    if max_norm.is_nan() {
        return Err(Error::Option { option: "max_norm", got: max_norm, wanted: "a number; 0 turns clipping off" });
    }
    if max_norm <= 0.0 { Ok(1.0) } else { Ok((max_norm / (norm + 1e-6)).min(1.0)) }
}

fn range(option: &'static str, got: f64, is_good: bool, wanted: &'static str) -> Result<()> {
    if is_good && got.is_finite() { Ok(()) } else { Err(Error::Option { option, got, wanted }) }
}

/// What is true of every step: a usable rate and scale.
fn check_step(lr: f64, gradient_scale: f64) -> Result<()> {
    range("lr", lr, lr >= 0.0, "a finite number of at least 0")?;
    range("gradient_scale", gradient_scale, true, "a finite number")
}
