//! `Cuda`: every operation on an NVIDIA GPU, in f32, f16 or bf16 with sums in f32.
//!
//! Always part of the program; the driver and cuBLASLt are looked for when a `Cuda` is made. An operation checks its
//! sizes by the same functions as on the CPU, on shapes without values, and only then starts its kernel. Kernels are the
//! `kernel.cu` of the operations' folders, compiled by `build/build.py` into `compiled/`.

mod backend;
mod blas;
mod buffers;
mod compiled;
pub(crate) mod cudnn;
mod device;
mod dtype;
mod findings;
mod host;
mod library;
mod loading;
mod overlap;
mod pool;
mod products;
mod recording;
mod steps;
#[cfg(test)]
mod tests;
mod timing;
mod weight;

use std::sync::{Arc, Mutex};

pub(crate) use blas::{Blas, Operand, Product};
pub(crate) use buffers::Tiles;
pub use buffers::{Act, Bytes, Full, Index, Segments};
pub use device::Device;
pub(crate) use device::{Arg, Buffer, Grid, Pointer};
pub use dtype::Dtype;
pub use host::Host;
pub(crate) use products::Products;
pub use recording::Recording;
pub use weight::Weight;
pub(crate) use weight::{Part, Scratch, Storage};

use super::attention::cudnn::{Fused, refusal};
use super::{Attention, Error, Result, adamw, attention, rope};

/// Queries of a tile of the forward attention kernels, and queries or keys of one of the backward kernels.
pub(crate) const QUERIES_FORWARD: usize = 128;
pub(crate) const ROWS_BACKWARD: usize = 64;

/// Which kernels compute attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionKind {
    /// cuDNN where it is there, fit for the GPU and faster, which is for texts of hundreds of tokens; else own kernels.
    #[default]
    Auto,
    /// Own kernels, which give the same bits every time.
    Own,
    /// cuDNN for every geometry it takes; an error where it is not there or not fit for the GPU.
    Cudnn,
}

impl AttentionKind {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Own, Self::Cudnn];

    /// `auto`, `own` or `cudnn`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Own => "own",
            Self::Cudnn => "cudnn",
        }
    }
}

/// The backend for NVIDIA GPUs.
#[derive(Debug)]
pub struct Cuda {
    // before `device`: their buffers and handles go first
    blas: Blas,
    fused: Option<Fused>,
    /// Why there is no `fused` where it was looked for.
    not_fused: Option<String>,
    scratch: Scratch,
    rotations: Mutex<Option<rope::cuda::Table>>,
    /// What the blocks of a cached attention leave for each other.
    partial: Mutex<Buffer>,
    lanes: loading::Lanes,
    /// The counters of a kernel whose blocks wait for each other; all 0 between kernels.
    arrived: Buffer,
    segments: Mutex<Option<adamw::cuda::Table>>,
    maps: Buffer,
    device: Arc<Device>,
    dtype: Dtype,
}

/// What a GPU is, for a person to read.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub name: String,
    pub capability: (i32, i32),
    pub free_bytes: usize,
    pub total_bytes: usize,
    /// The dtype `Cuda::new` takes there.
    pub dtype: Dtype,
}

/// What was found of what a `Cuda` needs.
#[derive(Debug)]
pub struct Findings {
    /// The newest CUDA version the driver supports, as (12, 4).
    pub driver: Result<(i32, i32)>,
    pub devices: Vec<Result<Description>>,
    /// cuBLASLt's file and version, as 130002.
    pub blas: Result<(String, usize)>,
    /// cuDNN's file and version, as 91900; it is not needed.
    pub cudnn: Result<(String, usize)>,
}

impl Cuda {
    /// GPU `index`; `None` computes in bf16 where the chip has it, else in f16. Attention is by own kernels.
    pub fn new(index: usize, dtype: Option<Dtype>) -> Result<Self> {
        Self::on(Device::open(index)?, dtype)
    }

    /// As `new`, on a stream that others use too: what they ask for and what this asks for is done in the order of asking.
    #[cfg(feature = "cuda")]
    pub fn on_stream(stream: Arc<cudarc::driver::CudaStream>, dtype: Option<Dtype>) -> Result<Self> {
        Self::on(Device::on_stream(stream)?, dtype)
    }

    /// The stream that everything is asked for on.
    #[cfg(feature = "cuda")]
    pub fn stream(&self) -> &Arc<cudarc::driver::CudaStream> {
        self.device.stream()
    }

    /// Fails where there is no GPU `index`.
    #[cfg(feature = "cuda")]
    pub fn check(index: usize) -> Result<()> {
        Device::check(index)
    }

    fn on(device: Device, dtype: Option<Dtype>) -> Result<Self> {
        let device = Arc::new(device);
        let dtype = dtype.unwrap_or(dtype_for(device.capability()));
        if dtype == Dtype::Bf16 && device.capability() < (8, 0) {
            let (major, minor) = device.capability();
            return Err(Error::NoBf16 { major, minor });
        }
        let maps = [*crate::quant::dynamic::signed_map(), *crate::quant::dynamic::unsigned_map()].concat();
        Ok(Self {
            blas: Blas::open(&device)?,
            fused: None,
            not_fused: None,
            scratch: Scratch::default(),
            rotations: Mutex::default(),
            partial: Mutex::default(),
            lanes: Mutex::default(),
            arrived: device.upload("maps", &[0_u32; 2])?,
            segments: Mutex::default(),
            maps: device.upload("maps", &maps)?,
            device,
            dtype,
        })
    }

    /// Times several algorithms for every shape of product and keeps the fastest. Which one that is can differ from run
    /// to run, and with it the last bits of the results.
    pub fn with_tuning(mut self, is_tuned: bool) -> Self {
        self.blas.set_tuned(is_tuned);
        self
    }

    /// Dequantises matrices of several parts (gate|up) part by part: half the scratch, a few more products. To be called
    /// before weights are made.
    pub fn with_small_scratch(mut self, is_small: bool) -> Self {
        self.scratch.is_split = is_small;
        self
    }

    /// Chooses the kernels of attention. cuDNN's are faster, and their gradients differ in the last bits from run to run.
    pub fn with_attention(mut self, kind: AttentionKind) -> Result<Self> {
        (self.fused, self.not_fused) = match kind {
            AttentionKind::Own => (None, None),
            AttentionKind::Cudnn => (Some(Fused::open(&self.device, true)?), None),
            AttentionKind::Auto => match Fused::open(&self.device, false) {
                Ok(fused) => (Some(fused), None),
                Err(error) => (None, Some(error.to_string())),
            },
        };
        Ok(self)
    }

    /// What computes attention of this geometry, and why it is not cuDNN where that was looked for.
    pub fn attention_name(&self, attention: &Attention) -> String {
        let own = attention::cuda::name(&self.device, self.dtype, attention);
        let why = match (&self.fused, refusal(0, self.dtype, attention), &self.not_fused) {
            (Some(fused), None, _) => return fused.name(),
            (Some(_), Some(why), _) => format!("not by cuDNN: {why}"),
            (None, _, Some(why)) => why.clone(),
            (None, _, None) => return own.to_owned(),
        };
        format!("{own} ({why})")
    }

    /// Whether the gradients of attention of this geometry are the same bits every time.
    pub fn is_deterministic(&self, attention: &Attention) -> bool {
        self.fused.is_none() || refusal(0, self.dtype, attention).is_some()
    }

    /// What activations are kept in.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether a driver is there that could run a `Cuda`; cheap, and never a reason to fail.
    pub fn is_driver_there() -> bool {
        device::is_driver_there()
    }

    /// Looks for everything that is needed and tells what it found.
    pub fn findings() -> Findings {
        let driver = findings::driver_version();
        let count = if driver.is_ok() { findings::count() } else { Ok(0) };
        let devices = match count {
            Ok(count) => (0..count).map(findings::describe).collect(),
            Err(error) => vec![Err(error)],
        };
        Findings { driver, devices, blas: blas::find(), cudnn: cudnn::find() }
    }
}

/// bf16 from compute capability 8.0 on, f16 below.
fn dtype_for(capability: (i32, i32)) -> Dtype {
    if capability >= (8, 0) { Dtype::Bf16 } else { Dtype::F16 }
}
