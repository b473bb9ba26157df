//! What can go wrong between a script's loop and the engine.

use std::fmt;

/// Why training, evaluation or generation refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    #[error(transparent)]
    Weights(#[from] crate::weights::Error),
    #[error(transparent)]
    Hub(#[from] crate::hub::Error),
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::Error),
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    #[error(transparent)]
    Optim(#[from] crate::optim::Error),
    #[error(transparent)]
    Export(#[from] crate::export::Error),
    #[error(transparent)]
    Generate(crate::generate::Error),
    #[error(transparent)]
    Candle(#[from] super::glue::CandleError),
    #[error("{what} is {value} at optimizer step {step}, with {rows}")]
    NotFinite { what: &'static str, value: f64, step: u64, rows: Rows },
    #[error("this loss has given its gradients already: compute `model.loss(batch)` anew before the next `backward()`")]
    Spent,
    #[error("`backward()` needs one number, this tensor has {elements}: reduce it with `sum()` or `mean()` first")]
    NotScalar { elements: usize },
    #[error("nothing in this tensor depends on a trained parameter, so `backward()` would change nothing")]
    NoGraph,
    #[error(
        "a text of {got} tokens is longer than the {limit} this model was loaded for: cut the texts with `max_length`, or raise `max_seq_length`"
    )]
    TooLong { got: usize, limit: usize },
    #[error(
        "the CPU computes in f32, `dtype` asks for {dtype}: leave the option out, or choose a GPU with `--device cuda`"
    )]
    CpuDtype { dtype: &'static str },
    #[error(
        "`attention: \"cudnn\"` is for a GPU, and the CPU computes here: leave the option out, or choose a GPU with `--device cuda`"
    )]
    CpuAttention,
    #[error("there is no text to evaluate on")]
    NothingToEvaluate,
    #[error(
        "the adapter this optimizer was made for is no longer on the model: make a new one from `model.parameters()`"
    )]
    OtherAdapter,
    #[error("the learning rate is {value}, wanted a finite number of at least 0")]
    LearningRate { value: f64 },
    #[error("there is no word whose probability could be told: give one that adds tokens to the prompt")]
    NoWord,
}

impl Error {
    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Engine(crate::engine::Error::Cancelled) | Self::Hub(crate::hub::Error::Cancelled))
    }

    /// Whether there is no GPU that could be used: none, too old a one, or one without what it needs.
    pub fn is_no_device(&self) -> bool {
        use crate::kernels::Error as Kernel;
        let Self::Engine(crate::engine::Error::Kernel(error)) = self else { return false };
        // What a driver says later than at the start is a failure of the run.
        let is_start = matches!(error, Kernel::Driver { op: "start", .. });
        is_start
            || matches!(
                error,
                Kernel::NoDriver
                    | Kernel::NoDevice { .. }
                    | Kernel::OldDevice { .. }
                    | Kernel::NoBlas
                    | Kernel::NoKernel { .. }
            )
    }

    /// Whether the device has too little memory for what was asked.
    pub fn is_out_of_memory(&self) -> bool {
        use crate::engine::Error as Engine;
        use crate::{hub, io, kernels, optim, weights};
        match self {
            Self::Engine(Engine::Kernel(error)) | Self::Optim(optim::Error::Kernel(error)) => {
                matches!(error, kernels::Error::Memory { .. })
            }
            Self::Weights(error) | Self::Engine(Engine::Weights(error)) | Self::Hub(hub::Error::Weights(error)) => {
                matches!(error, weights::Error::Io(io::Error::Memory { .. }))
            }
            _ => false,
        }
    }
}

impl From<crate::generate::Error> for Error {
    /// Takes our own error out again where the model's answer carried it.
    fn from(error: crate::generate::Error) -> Self {
        match error {
            crate::generate::Error::Model(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Generate(crate::generate::Error::Model(other)),
            },
            other => Self::Generate(other),
        }
    }
}

/// The rows a number came from, as `file:line`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(pub Vec<String>);

/// Names beyond this many are counted.
const SHOWN_ROWS: usize = 8;

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().take(SHOWN_ROWS).cloned().collect::<Vec<_>>().join(", ");
        match self.0.len() {
            0 => f.write_str("rows that have no place"),
            n if n > SHOWN_ROWS => write!(f, "{shown} and {} more", n - SHOWN_ROWS),
            1 => write!(f, "row {shown}"),
            _ => write!(f, "rows {shown}"),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;
