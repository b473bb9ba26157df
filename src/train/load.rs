//! From a model's id to a model on a device.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rust_embed::RustEmbed;

use crate::engine::{Cancel, Engine, LoadOptions};
use crate::hub::{self, Source};
use crate::kernels::cuda::Dtype;
use crate::kernels::{Cpu, Cuda, Reference};
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, TokenizerSource};

use super::model::Parts;
use super::runner::Runner;
use super::{Error, Model, Result};

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one that can be used, else the processor.
    Auto { threads: Option<usize> },
    /// An NVIDIA GPU, by the driver's number.
    Cuda { index: usize },
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
    /// What a GPU keeps activations in: bf16 where it has it, else f16, unless said otherwise. The CPU has f32 alone.
    pub dtype: Option<Dtype>,
    /// Set to stop whatever the model is doing, within one layer.
    pub cancel: Arc<AtomicBool>,
}

impl Default for LoadSettings {
    fn default() -> Self {
        let device = Device::Cpu { threads: None };
        Self { load_in_4bit: false, max_seq_length: None, device, dtype: None, cancel: Arc::default() }
    }
}

/// The files of the base that is part of the program.
#[derive(RustEmbed)]
#[folder = "stdlib/base/tiny-mistral"]
#[allow_missing = true]
struct BuiltIn;

impl Model {
    /// The model that `id` names: `auto`, `builtin:tiny-mistral`, a folder or `.gguf` relative to `folder`, a hub id
    /// whose files are on this machine.
    pub fn from_pretrained(id: &str, folder: &Path, settings: &LoadSettings) -> Result<Self> {
        let checkpoint = match hub::resolve(id, folder)? {
            Source::Path(path) | Source::Cached { folder: path, .. } => Checkpoint::open(&path)?,
            Source::Builtin(name) => {
                let config = String::from_utf8_lossy(built_in("config.json")?);
                let (weights, tokenizer) = (built_in("model.safetensors")?, built_in("tokenizer.json")?);
                Checkpoint::from_named_bytes(name, &config, weights, tokenizer)?
            }
        };
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
        let (mut runner, remark) = runner(checkpoint, &options, settings)?;
        runner.set_cancel(Cancel::from_flag(settings.cancel.clone()));
        let origin = checkpoint.origin().to_owned();
        let max_seq_length = settings.max_seq_length;
        Self::new(Parts { runner, tokenizer, tokenizer_json, origin, max_seq_length, remark })
    }
}

/// The engine on the device asked for, and what a user should know about the choice.
fn runner(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    settings: &LoadSettings,
) -> Result<(Box<dyn Runner>, Option<String>)> {
    let on_cpu = |threads| -> Result<Box<dyn Runner>> {
        match settings.dtype {
            None | Some(Dtype::F32) => Ok(Box::new(Engine::load(Cpu::new(threads), checkpoint, options)?)),
            Some(dtype) => Err(Error::CpuDtype { dtype: dtype.name() }),
        }
    };
    let gpu = |index| Cuda::new(index, settings.dtype).map_err(crate::engine::Error::from);
    match settings.device {
        Device::Cpu { threads } => Ok((on_cpu(threads)?, None)),
        Device::Cuda { index } => Ok((Box::new(Engine::load(gpu(index)?, checkpoint, options)?), None)),
        Device::Reference => Ok((Box::new(Engine::load(Reference::new(), checkpoint, options)?), None)),
        Device::Auto { threads } if !Cuda::is_driver_there() => Ok((on_cpu(threads)?, None)),
        Device::Auto { threads } => match gpu(0) {
            Ok(gpu) => Ok((Box::new(Engine::load(gpu, checkpoint, options)?), None)),
            Err(error) => Ok((on_cpu(threads)?, Some(format!("computing on the CPU, because {error}")))),
        },
    }
}

/// One file of the built-in base.
fn built_in(name: &str) -> Result<&'static [u8]> {
    match BuiltIn::get(name).ok_or(Error::NoBuiltIn)?.data {
        Cow::Borrowed(bytes) => Ok(bytes),
        // Only a build that reads the files at run time comes here; the base then lives as long as the process.
        Cow::Owned(bytes) => Ok(Vec::leak(bytes)),
    }
}
