//! The recipe language: a strict Rhai with unslothify's natives.
//!
//! [`Session`] runs recipes; [`Host`] is what natives may use of the world; [`options!`](crate::options) reads named
//! options; [`Failure`] is what a user sees when something goes wrong.

mod engine;
mod failure;
mod host;
pub mod modules;
pub(crate) mod names;
pub mod options;
mod panics;
mod render;
mod resolver;
mod session;
mod sources;
mod stdlib;
mod stop;
mod terminal;
mod text;
mod translate;
mod unsaved;

#[cfg(test)]
mod tests;

pub use crate::hub::{Findings as HubFindings, findings as find_hub};
pub use crate::train::{Description as Gpu, Findings as GpuFindings, findings as find_gpus};
pub use engine::Register;
pub use failure::{Failure, Frame, Kind, Place};
pub use host::{Device, Error as HostError, Host};
pub use session::{Session, SessionOptions};
pub use stop::{Stop, StopReason};
pub use terminal::{Collected, PAGE, Progress, Terminal};
