//! The transformer: hand-written forward and backward per decoder layer, over any `kernels::Backend`.
//!
//! Batches are token-major: texts laid end to end, none padded. Only the adapters are trained; no gradient of a
//! frozen weight is ever computed. `engine.rs` holds the model, `layer.rs` one decoder layer, `head.rs` the loss.

mod batch;
mod cancel;
mod decode;
#[allow(clippy::module_inception)]
mod engine;
mod frozen;
mod head;
mod kept;
mod layer;
mod lora;
mod loss_scale;
mod mlp;
mod net;
mod plan;
mod planned;
mod random;
mod step;
#[cfg(test)]
mod tests;
mod trace;

pub use batch::{Batch, IGNORE};
pub use cancel::Cancel;
pub use decode::KvCache;
pub use engine::{Engine, Flat, FlatMut, Mode};
pub use frozen::LoadOptions;
pub use lora::{AdapterTensor, LoraConfig, MODULES, Matrix};
pub use net::attention_of;
pub use plan::{Item, Level, Memory, Plan};
pub use trace::Traced;

/// Why the engine refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kernel(#[from] crate::kernels::Error),
    #[error(transparent)]
    Weights(#[from] crate::weights::Error),
    #[error("tensor `{name}` is {got_rows} x {got_cols}, the config asks for {rows} x {cols}")]
    Shape { name: String, got_rows: usize, got_cols: usize, rows: usize, cols: usize },
    #[error("batch: {0}")]
    Batch(BatchFault),
    #[error(
        "the model has no adapter to train: call `model.add_lora(#{{ r: 16 }})` or `model.load_adapter(dir)` first"
    )]
    NoAdapter,
    #[error("the model already has an adapter: call `model.unload_adapter()` first")]
    AdapterPresent,
    #[error("`{name}` is not a linear layer of this model; there are {}", MODULES.join(", "))]
    UnknownModule { name: String },
    #[error("`layers_to_transform` names layer {layer}, the model has layers 0 to {}", layers - 1)]
    UnknownLayer { layer: usize, layers: usize },
    #[error("`{field}` is {value}, wanted {wanted}")]
    Setting { field: &'static str, value: f64, wanted: &'static str },
    #[error("the adapter has no tensor `{name}`")]
    UnknownTensor { name: String },
    #[error("adapter tensor `{name}` has {got} values, wanted {wanted}")]
    TensorSize { name: String, got: usize, wanted: usize },
    #[error("no forward pass is waiting for its backward: `backward()` was called twice on one loss, or not after it")]
    NoForward,
    #[error(
        "a loss of this model still waits for its `backward()`: call it, or drop that loss, before the next `model.loss`"
    )]
    PassPending,
    #[error(
        "a pass of {tokens} tokens needs {:.2} GB on the device at least, and {:.2} GB may be taken: shorten the texts \
         (`max_length`), lower `per_device_train_batch_size` or the adapter's `r`, or allow more memory",
        *needed as f64 / 1e9,
        *given as f64 / 1e9
    )]
    Memory { tokens: usize, needed: usize, given: usize },
    #[error("interrupted")]
    Cancelled,
}

/// What is wrong with a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    #[error("it holds no tokens")]
    Empty,
    #[error("{targets} targets for {ids} tokens")]
    Lengths { ids: usize, targets: usize },
    #[error("text borders must rise from 0 to {tokens}")]
    Borders { tokens: usize },
    #[error(
        "token {id} at position {position} is outside the vocabulary of {vocabulary}; is the tokenizer this model's?"
    )]
    Token { id: i64, position: usize, vocabulary: usize },
    #[error("no token has a target, so there is nothing to learn from")]
    NoTargets,
}

pub type Result<T> = std::result::Result<T, Error>;
