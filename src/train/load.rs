//! From a model's id to a model on a device.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::engine::{Cancel, Engine, LoadOptions, Memory, attention_of};
use crate::kernels::cuda::{AttentionKind, Dtype};
use crate::kernels::{Cpu, Cuda, Reference};
use crate::optim::LossScale;
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, ModelConfig, TokenizerSource};
use crate::{hub, io};

use super::glue::{self, Place};
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

/// What is known of f16.
const F16_REMARK: &str = "computing in f16, training with a scaled loss: experimental, tried on an H100 and on no card \
                          without bf16; `dtype: \"f32\"` is slower and needs no scaling";

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// Quantises 16-bit and 32-bit linears to NF4; what is quantised already stays as it is.
    pub load_in_4bit: bool,
    /// Longest text in tokens; the model's own limit where it is smaller.
    pub max_seq_length: Option<usize>,
    pub device: Device,
    /// Bytes the processor may take to keep weights unpacked, ready for the product; half of the free memory when not
    /// given. Results are the same bits either way.
    pub unpacked_bytes: Option<u64>,
    /// What a GPU keeps activations in: bf16 where it has it, else f16, unless said otherwise. The CPU has f32 alone.
    pub dtype: Option<Dtype>,
    /// Which kernels compute attention on a GPU; the CPU has its own alone.
    pub attention: AttentionKind,
    /// How much memory training may take.
    pub memory: Memory,
    /// Trains with a loss scaled dynamically from this number on; f16 does without being asked, from 65536 on.
    pub loss_scale: Option<f64>,
    /// Set to stop whatever the model is doing, within one layer.
    pub cancel: Arc<AtomicBool>,
}

impl Default for LoadSettings {
    fn default() -> Self {
        let device = Device::Cpu { threads: None };
        Self {
            load_in_4bit: false,
            max_seq_length: None,
            device,
            unpacked_bytes: None,
            dtype: None,
            attention: AttentionKind::Auto,
            memory: Memory::default(),
            loss_scale: None,
            cancel: Arc::default(),
        }
    }
}

impl Model {
    /// The model that `id` names: `auto`, `builtin:tiny-mistral`, a folder or `.gguf` relative to `folder`, or a hub id,
    /// whose files are fetched where the Hugging Face cache lacks them.
    pub fn from_pretrained(id: &str, folder: &Path, settings: &LoadSettings) -> Result<Self> {
        Self::from_pretrained_told(id, folder, settings, &hub::Silent)
    }

    /// As `from_pretrained`; `listener` hears what is fetched, and what `auto` took and why.
    pub fn from_pretrained_told(
        id: &str,
        folder: &Path,
        settings: &LoadSettings,
        listener: &dyn hub::Listener,
    ) -> Result<Self> {
        let places = hub::Places::from_environment();
        let access = hub::Access::new(&places, listener, &settings.cancel);
        if id != "auto" {
            let checkpoint = hub::resolve(id, folder, &access)?.open()?;
            return Self::from_checkpoint(&checkpoint, settings);
        }
        let chosen = choose(settings)?;
        let (source, told) = hub::resolve_auto(chosen.room(), settings.load_in_4bit, &access)?;
        listener.note(&told);
        Self::on(chosen, &source.open()?, settings)
    }

    /// Puts an opened checkpoint on a device.
    pub fn from_checkpoint(checkpoint: &Checkpoint, settings: &LoadSettings) -> Result<Self> {
        Self::on(choose(settings)?, checkpoint, settings)
    }

    fn on(chosen: Chosen, checkpoint: &Checkpoint, settings: &LoadSettings) -> Result<Self> {
        let source = checkpoint.tokenizer()?;
        let tokenizer_json = match &source {
            TokenizerSource::Json(bytes) => bytes.clone(),
            TokenizerSource::Gguf(gguf) => Tokenizer::json_of(gguf)?,
        };
        let tokenizer = Tokenizer::from_source(source, checkpoint.config(), checkpoint.origin())?;
        let options = LoadOptions { load_in_4bit: settings.load_in_4bit, memory: settings.memory };
        let unpacked = match chosen {
            Chosen::Cpu { .. } => Unpacked::new(checkpoint.config(), settings),
            _ => Unpacked { wanted: 0, limit: 0 },
        };
        let cancel = Cancel::from_flag(settings.cancel.clone());
        let mut place = Place::Cpu;
        let (runner, remark): (Box<dyn Runner>, _) = match chosen {
            Chosen::Cpu { threads, remark } => {
                let cpu = Cpu::new(threads).with_dense_limit(usize::try_from(unpacked.limit).unwrap_or(usize::MAX));
                (Box::new(Engine::load_until(cpu, checkpoint, &options, cancel)?), remark)
            }
            Chosen::Cuda(gpu, beside) => {
                place = beside;
                let f16 = (gpu.dtype() == Dtype::F16).then(|| F16_REMARK.to_owned());
                let attention = attention_remark(&gpu, checkpoint.config(), settings.attention);
                let remarks: Vec<String> = f16.into_iter().chain(attention).collect();
                let remark = (!remarks.is_empty()).then(|| remarks.join("; "));
                (Box::new(Engine::load_until(*gpu, checkpoint, &options, cancel)?), remark)
            }
            Chosen::Reference => (Box::new(Engine::load_until(Reference::new(), checkpoint, &options, cancel)?), None),
        };
        let loss_scale = match settings.loss_scale {
            Some(scale) => Some(LossScale::new(scale)?),
            None => runner.needs_loss_scale().then(LossScale::default),
        };
        let origin = checkpoint.origin().to_owned();
        let max_seq_length = settings.max_seq_length;
        Self::new(Parts {
            runner,
            tokenizer,
            tokenizer_json,
            origin,
            max_seq_length,
            unpacked,
            remark,
            loss_scale,
            place,
        })
    }
}

/// The device that computes.
enum Chosen {
    /// `remark` is what a user should know about the choice.
    Cpu {
        threads: Option<usize>,
        remark: Option<String>,
    },
    Cuda(Box<Cuda>, Place),
    Reference,
}

impl Chosen {
    /// What room there is for a base that is still to be chosen.
    fn room(&self) -> hub::Room {
        match self {
            Self::Cpu { .. } | Self::Reference => hub::Room::Cpu,
            Self::Cuda(gpu, _) => {
                hub::Room::Gpu { free_bytes: gpu.device().memory().map_or(0, |(free, _)| free as u64) }
            }
        }
    }
}

/// Chooses the device; on a GPU also where scripts' own tensors go beside it.
fn choose(settings: &LoadSettings) -> Result<Chosen> {
    let on_cpu = |threads, remark| match (settings.dtype, settings.attention) {
        (None | Some(Dtype::F32), AttentionKind::Cudnn) => Err(Error::CpuAttention),
        (None | Some(Dtype::F32), _) => Ok(Chosen::Cpu { threads, remark }),
        (Some(dtype), _) => Err(Error::CpuDtype { dtype: dtype.name() }),
    };
    let is_lean = settings.memory == Memory::Lean;
    // cuDNN's backward takes buffers of its own, which the lean mode does without unless it was asked for
    let attention = match settings.attention {
        AttentionKind::Auto if is_lean => AttentionKind::Own,
        kind => kind,
    };
    let gpu = |index| {
        let (gpu, place) = glue::gpu(index, settings.dtype)?;
        let gpu = gpu.with_small_scratch(is_lean).with_attention(attention).map_err(crate::engine::Error::from)?;
        Ok::<_, Error>(Chosen::Cuda(Box::new(gpu), place))
    };
    match settings.device {
        Device::Cpu { threads } => on_cpu(threads, None),
        Device::Cuda { index } => gpu(index),
        Device::Reference => Ok(Chosen::Reference),
        Device::Auto { threads } if !Cuda::is_driver_there() => on_cpu(threads, None),
        Device::Auto { threads } => match gpu(0) {
            Ok(chosen) => Ok(chosen),
            // what the CPU cannot do either is told with the GPU's reason
            Err(error) => on_cpu(threads, Some(format!("computing on the CPU, because {error}"))).or(Err(error)),
        },
    }
}

/// What a user should know about the kernels of attention: those that are not the same bits every time, and a wish that
/// could not be met.
fn attention_remark(gpu: &Cuda, config: &ModelConfig, wanted: AttentionKind) -> Option<String> {
    let attention = attention_of(config);
    let name = gpu.attention_name(&attention);
    if !gpu.is_deterministic(&attention) {
        return Some(format!(
            "attention by {name}: the last bits of its gradients differ from run to run; `attention: \"own\"` gives the \
             same bits every time"
        ));
    }
    // where cuDNN would be faster, how to get it
    let is_fit = matches!(gpu.device().capability().0, 9 | 10);
    let is_wanted = wanted == AttentionKind::Cudnn || (wanted == AttentionKind::Auto && is_fit);
    is_wanted.then(|| format!("attention by {name}"))
}

/// What the processor keeps of the weights in the form its product reads, and what it would keep if it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes for all linear layers and the head in f32, once for each direction of a training pass: a base in bf16 takes
    /// a quarter of it, in which case a shortage is told too early, never too late.
    pub wanted: u64,
    /// Bytes it may take.
    pub limit: u64,
}

/// The limit where the system does not say how much memory is free.
const UNKNOWN_MEMORY: u64 = 2 << 30;

impl Unpacked {
    fn new(config: &ModelConfig, settings: &LoadSettings) -> Self {
        let of =
            |name: String| config.shape(&name).unwrap_or_default().iter().map(|size| *size as u64).product::<u64>();
        let linears = config.tensor_names().filter(|name| name.ends_with("_proj.weight")).map(of).sum::<u64>();
        let head = of("lm_head.weight".to_owned());
        let free_half = || io::available_memory().map_or(UNKNOWN_MEMORY, |free| free / 2);
        Self {
            wanted: (linears + head) * 2 * size_of::<f32>() as u64,
            limit: settings.unpacked_bytes.unwrap_or_else(free_half),
        }
    }

    /// Whether steps unpack weights anew because memory is short.
    pub fn is_short(&self) -> bool {
        self.wanted > self.limit
    }
}
