//! The arithmetic of training: one `Backend` trait, one folder per operation.
//!
//! `Cpu` computes in f32 on all cores, `Cuda` on an NVIDIA GPU; `Reference` computes the same in f64 with plain loops and
//! is the proof.

// rows and columns by number, as in the formulas
#![allow(clippy::needless_range_loop)]

mod backend;
mod cpu;
pub mod cuda;
mod frozen;
mod matrix;
mod reference;
mod simd;
mod threads;

mod adamw;
mod adamw_8bit;
mod attention;
mod cross_entropy;
mod embed;
mod gather;
mod gemm;
mod linear;
mod lora;
mod rms_norm;
mod rope;
mod scale;
mod sum_squares;
mod swiglu;
#[cfg(test)]
mod testing;

pub use backend::{
    AdamWStep, Attention, Backend, DeviceMemory, LoraGroup, LoraPart, StateSegment, StepLinear, StepScratch,
};
pub(crate) use backend::{check_rows, same};
pub use cpu::Cpu;
pub use cuda::Cuda;
pub use reference::Reference;

/// Why an operation refused its arguments.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{op}`: {what} is {got}, wanted {wanted}")]
    Size { op: &'static str, what: &'static str, got: usize, wanted: usize },
    #[error("`{op}`: index {index} is outside 0..{len}")]
    Index { op: &'static str, index: usize, len: usize },
    /// Of what grows with the model or the batch. A task's own panels and tiles, and what libraries take, still end the
    /// process; so does a system that promises memory it does not have (Linux kills with signal 9).
    #[error("out of memory: {op} asked for {bytes} bytes")]
    Memory { op: &'static str, bytes: usize },
    #[error(
        "out of memory: {op} asked for {bytes} bytes of the computer's own memory, which the GPU reads by itself; \
         `memory: \"speed\"` keeps everything on the GPU"
    )]
    HostMemory { op: &'static str, bytes: usize },
    #[error(
        "there is no NVIDIA driver on this machine: `--device cpu` computes without a GPU; a GPU needs the driver from \
         nvidia.com or your system's packages (version 525 or newer)"
    )]
    NoDriver,
    #[error("there is no GPU {index}: the driver shows {count}; `unslothify doctor` tells what is there")]
    NoDevice { index: usize, count: usize },
    #[error(
        "this GPU has compute capability {major}.{minor}, wanted at least 7.5 (Turing): `--device cpu` runs without"
    )]
    OldDevice { major: i32, minor: i32 },
    #[error("this GPU (compute capability {major}.{minor}) has no bf16, wanted at least 8.0: use f16 or f32")]
    NoBf16 { major: i32, minor: i32 },
    #[error(
        "the library cuBLASLt (libcublasLt.so.13 or .so.12) was not found: install the CUDA toolkit, or \
         `pip install nvidia-cublas-cu12` and set LD_LIBRARY_PATH to its folder site-packages/nvidia/cublas/lib"
    )]
    NoBlas,
    #[error("`{op}` on the GPU: {said} (CUDA error {code})")]
    Driver { op: &'static str, code: u32, said: String },
    #[error(
        "the library cuDNN 9 (libcudnn.so.9) was not found: `pip install nvidia-cudnn-cu12` and set LD_LIBRARY_PATH to \
         its folder site-packages/nvidia/cudnn/lib, or compute attention without it: `attention: \"own\"`"
    )]
    NoCudnn,
    #[error("cuDNN cannot compute attention here: {why}; `attention: \"own\"` computes it without cuDNN")]
    UnfitCudnn { why: String },
    #[error(
        "`{op}` on the GPU: cuDNN could not {step}: {said} (status {status}); `attention: \"own\"` computes without cuDNN"
    )]
    Cudnn { op: &'static str, step: &'static str, status: u32, said: String },
    #[error("`{op}` on the GPU: cuBLASLt answered with status {status}")]
    Blas { op: &'static str, status: u32 },
    #[error("the program holds no kernel `{name}` for {dtype} on this GPU")]
    NoKernel { name: &'static str, dtype: &'static str },
}

pub type Result<T> = std::result::Result<T, Error>;
