//! From a model's id to a model on a device.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::engine::{Cancel, Engine, LoadOptions};
use crate::hub;
use crate::kernels::{Cpu, Reference};
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, TokenizerSource};

use super::model::Parts;
use super::runner::Runner;
use super::{Model, Result};

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// f32 on the processor, on so many threads or as many as it has.
    Cpu { threads: Option<usize> },
    /// f64 plain loops: slow, the proof of the others.
    Reference,
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// Quantises 16-bit and 32-bit linears to NF4; what is quantised already stays as it is.
    pub load_in_4bit: bool,
    /// Longest text in tokens; the model's own limit where it is smaller.
    pub max_seq_length: Option<usize>,
    pub device: Device,
    /// Set to stop whatever the model is doing, within one layer.
    pub cancel: Arc<AtomicBool>,
}

impl Default for LoadSettings {
    fn default() -> Self {
        let device = Device::Cpu { threads: None };
        Self { load_in_4bit: false, max_seq_length: None, device, cancel: Arc::default() }
    }
}

impl Model {
    /// The model that `id` names: `auto`, `builtin:tiny-mistral`, a folder or `.gguf` relative to `folder`, a hub id
    /// whose files are on this machine.
    pub fn from_pretrained(id: &str, folder: &Path, settings: &LoadSettings) -> Result<Self> {
        let checkpoint = hub::resolve(id, folder)?.open()?;
        Self::from_checkpoint(&checkpoint, settings)
    }

    /// Puts an opened checkpoint on a device.
    pub fn from_checkpoint(checkpoint: &Checkpoint, settings: &LoadSettings) -> Result<Self> {
        let source = checkpoint.tokenizer()?;
        let tokenizer_json = match &source {
            TokenizerSource::Json(bytes) => Some(bytes.clone()),
            TokenizerSource::Gguf(_) => None,
        };
        let tokenizer = Tokenizer::from_source(source, checkpoint.config())?;
        let options = LoadOptions { load_in_4bit: settings.load_in_4bit };
        let cancel = Cancel::from_flag(settings.cancel.clone());
        let runner: Box<dyn Runner> = match settings.device {
            Device::Cpu { threads } => Box::new(Engine::load_until(Cpu::new(threads), checkpoint, &options, cancel)?),
            Device::Reference => Box::new(Engine::load_until(Reference::new(), checkpoint, &options, cancel)?),
        };
        let origin = checkpoint.origin().to_owned();
        Self::new(Parts { runner, tokenizer, tokenizer_json, origin, max_seq_length: settings.max_seq_length })
    }
}
