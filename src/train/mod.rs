//! What a training loop calls: a model with its loss, gradients, optimizer steps, evaluation and adapters.
//!
//! No loop over optimizer steps is written here; a script writes it. `glue.rs` joins the engine to candle's autograd.

mod adapter;
mod error;
mod evaluate;
mod glue;
mod load;
mod model;
mod optimizer;
mod pace;
mod rate;
mod runner;
mod text;

pub use crate::engine::{LoraConfig, MODULES};
pub use crate::engine::{Memory, Plan};
pub use crate::hub::Listener;
pub use crate::kernels::cuda::{AttentionKind, Description, Dtype, Findings};
pub use adapter::{LoadedAdapter, SavedAdapter};
pub use error::{Error, Result, Rows};
pub use evaluate::Evaluation;
pub use glue::{Place, Tensor, backward};
pub use load::{Device, LoadSettings, Unpacked};
pub use model::{Model, Parameters, WeakModel};
pub use optimizer::{Algorithm, Optimizer, Skipped, Step};
pub use pace::{Beat, Pace};
pub use rate::learning_rate;

/// Looks for GPUs and what they need, and tells what was found.
pub fn findings() -> Findings {
    crate::kernels::Cuda::findings()
}
