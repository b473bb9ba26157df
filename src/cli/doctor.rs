//! `unslothify doctor`: what there is to compute with, where models are, and how to get what is missing.

use std::fmt::Write;
use std::path::Path;

use super::arguments::Doctor;
use super::output;
use crate::io;
use crate::script::{Gpu, GpuFindings, HubFindings, find_gpus, find_hub};

/// Nobody has tried f16 on a card that has no bf16.
const NO_BF16: &str = "no bf16: f16 with a scaled loss, experimental; `dtype: \"f32\"` is slower and needs no scaling";
const GIB: f64 = (1_u64 << 30) as f64;

pub(super) fn main(arguments: &Doctor) -> anyhow::Result<()> {
    output::print(&format!("{}{}", report(&find_gpus()), storage(&find_hub(), &arguments.out)))
}

/// Where models and runs go, how much room there is, and how models come.
fn storage(hub: &HubFindings, out: &Path) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        let _ = writeln!(text, "{name:<10}{what}");
    };
    let places = &hub.places;
    line("cache", &format!("{}, {}", places.cache.display(), free(&places.cache)));
    line("runs", &format!("{}, {}", out.display(), free(out)));
    let network = match (places.offline, hub.can_fetch) {
        (_, false) => "this build reads the cache alone".to_owned(),
        (Some(variable), true) => format!("offline: {variable} is set, so that the cache is all there is"),
        (None, true) => "models that are not in the cache are fetched".to_owned(),
    };
    line("hub", &format!("{}; {network}", places.endpoint));
    match &places.token_from {
        Some(from) => line("token", &format!("found in {from}")),
        None => line("token", "none: HF_TOKEN or `hf auth login` gives one, for gated and private models"),
    }
    text
}

fn free(place: &Path) -> String {
    match io::free_space(place) {
        Some(bytes) => format!("{:.1} GiB free", bytes as f64 / GIB),
        None => "free space unknown".to_owned(),
    }
}

fn report(found: &GpuFindings) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        let _ = writeln!(text, "{name:<10}{what}");
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    line("cpu", &format!("{threads} threads, f32"));
    match &found.driver {
        Ok((major, minor)) => line("driver", &format!("found, up to CUDA {major}.{minor}")),
        Err(error) => line("driver", &format!("missing: {error}")),
    }
    for (index, gpu) in found.devices.iter().enumerate() {
        match gpu {
            Ok(gpu) => line(&format!("cuda:{index}"), &describe(gpu)),
            Err(error) => line(&format!("cuda:{index}"), &format!("not usable: {error}")),
        }
    }
    if found.driver.is_ok() && found.devices.is_empty() {
        line("gpu", "the driver shows none");
    }
    match &found.blas {
        Ok((path, version)) => {
            let (major, minor) = (version / 10_000, version / 100 % 100);
            line("cublasLt", &format!("{major}.{minor} in {path}"));
        }
        Err(error) => line("cublasLt", &format!("missing: {error}")),
    }
    match &found.cudnn {
        Ok((path, version)) => {
            let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
            line("cudnn", &format!("{major}.{minor}.{patch} in {path}"));
        }
        Err(_) => line(
            "cudnn",
            "not found, and not needed: own kernels compute attention; on compute capability 9.x and \
                                 10.x cuDNN's are faster (`pip install nvidia-cudnn-cu12`)",
        ),
    }
    let is_usable = found.blas.is_ok() && found.devices.iter().any(Result::is_ok);
    line("so", if is_usable { "`--device auto` computes on cuda:0" } else { "`--device auto` computes on the CPU" });
    text
}

fn describe(gpu: &Gpu) -> String {
    let (free, total) = (gpu.free_bytes as f64 / GIB, gpu.total_bytes as f64 / GIB);
    let (major, minor) = gpu.capability;
    let dtype = gpu.dtype.name();
    let bf16 = if dtype == "bf16" { "bf16" } else { NO_BF16 };
    format!("{}, {free:.1} of {total:.1} GiB free, compute capability {major}.{minor}, {bf16}", gpu.name)
}
